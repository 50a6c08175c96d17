"""Convolutions over utterances of different lengths: masked as NeMo masks, and fast on the CPU.

Tensors are named with their axes: B batch, C channels, T frames.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True, eq=False)
class Frames:
    """Which frames of a batch are valid.

    Args:
        lens_B: number of valid frames.
        mask_B1T: 1 for valid frames and 0 beyond; None where convolutions are not masked.
    """

    lens_B: Tensor
    mask_B1T: Tensor | None

    @classmethod
    def of(cls, x_BCT: Tensor, lens_B: Tensor, masked: bool) -> "Frames":
        """The frames of `x_BCT`; the mask has its dtype, which is what the CPU multiplies fastest."""
        if not masked:
            return cls(lens_B, None)
        mask_BT = torch.arange(x_BCT.shape[-1], device=x_BCT.device) < lens_B.unsqueeze(1)
        return cls(lens_B, mask_BT.unsqueeze(1).to(x_BCT.dtype))

    def zero_padding(self, x_BCT: Tensor) -> Tensor:
        """A copy of `x_BCT` with zeros beyond the valid frames."""
        return x_BCT if self.mask_B1T is None else x_BCT * self.mask_B1T.to(x_BCT.dtype)

    def zero_padding_(self, x_BCT: Tensor) -> Tensor:
        """`x_BCT` itself, zeroed beyond the valid frames; nothing may have saved it for its backward pass."""
        return x_BCT if self.mask_B1T is None else x_BCT.mul_(self.mask_B1T)

    def behind(self, conv: nn.Conv1d, y_BCT: Tensor) -> "Frames":
        """The frames of `y_BCT`, the output of `conv`; the same object where no frame was gained or lost."""
        if _keeps_length(conv):
            return self
        return Frames.of(y_BCT, conv_lengths(conv, self.lens_B), self.mask_B1T is not None)


def _geometry(conv: nn.Conv1d) -> tuple[int, int, int, int]:
    """Padding, stride, dilation, kernel size."""
    assert not isinstance(conv.padding, str)  # "same" and "valid" are not used here
    return conv.padding[0], conv.stride[0], conv.dilation[0], conv.kernel_size[0]


def _keeps_length(conv: nn.Conv1d) -> bool:
    padding, stride, dilation, kernel = _geometry(conv)
    return stride == 1 and 2 * padding == dilation * (kernel - 1)


def conv_lengths(conv: nn.Conv1d, lens_B: Tensor) -> Tensor:
    """Valid output frames: floor((L + 2*padding - dilation*(kernel - 1) - 1) / stride) + 1; none of none."""
    if _keeps_length(conv):
        return lens_B
    padding, stride, dilation, kernel = _geometry(conv)
    span = lens_B + 2 * padding - dilation * (kernel - 1) - 1
    return torch.div(span, stride, rounding_mode="floor") + 1


class MaskedConv1d(nn.Module):
    """A convolution behind NeMo's state-dict key ``conv.weight``; its caller zeroes the invalid frames of its input.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: odd width, padded by ``dilation*(kernel - 1)//2`` frames on either side.
        heads: depthwise only: number of distinct kernels, -1 for one per channel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        heads: int = -1,
    ) -> None:
        super().__init__()
        self.heads = heads
        if heads != -1:
            in_channels = out_channels = groups = heads
        self.conv = padded_conv1d(in_channels, out_channels, kernel, stride, dilation, groups)

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Convolve ``(batch, channels, frames)``."""
        if self.heads == -1:
            return convolve(self.conv, x_BCT)
        batch, channels, _ = x_BCT.shape
        y = convolve(self.conv, x_BCT.reshape(batch * channels // self.heads, self.heads, -1))
        return y.reshape(batch, channels, -1)


def padded_conv1d(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Conv1d:
    """A convolution without bias; with an odd `kernel` and stride 1 it keeps the number of frames."""
    padding = dilation * (kernel - 1) // 2
    return nn.Conv1d(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False)


# activations of this many values at a time stay in a CPU's cache; larger batches are convolved in slices
_SLICE_VALUES = 1 << 20


def convolve(conv: nn.Conv1d, x_BCT: Tensor) -> Tensor:
    """``conv(x_BCT)``, with a faster evaluation of depthwise convolutions on the CPU.

    Laid out as images as wide as their dilation they take oneDNN's vectorized depthwise kernels, 2 to 9 times as fast
    as ``conv1d`` forward and backward (``benchmarks/depthwise_conv.py``). The padding is made beforehand because those
    kernels compute wrong weight gradients when they pad more than about 20 frames themselves (torch 2.13).
    Half precision, autocast's too, is computed in float32 and rounded: its own kernels take 5 times as long.
    """
    depthwise = conv.groups == conv.in_channels == conv.out_channels and conv.kernel_size[0] > 1
    if not (depthwise and conv.stride[0] == 1 and _onednn_computes(x_BCT)):
        return conv(x_BCT)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x_BCT.dtype
    with torch.autocast("cpu", enabled=False):
        x_BCT, weight_C1K = x_BCT.float(), conv.weight.float()
        size = max(1, _SLICE_VALUES // (x_BCT.shape[1] * x_BCT.shape[2]))
        if size >= len(x_BCT):
            y_BCT = _depthwise(x_BCT, weight_C1K, conv.dilation[0])
        else:
            y_BCT = torch.cat([_depthwise(part, weight_C1K, conv.dilation[0]) for part in x_BCT.split(size)])
    return y_BCT.to(dtype)


def _onednn_computes(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_exporting()  # slices would fix the size of the batch
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
    )


def _depthwise(x_BCT: Tensor, weight_C1K: Tensor, dilation: int) -> Tensor:
    frames = x_BCT.shape[2]
    padding = dilation * (weight_C1K.shape[-1] // 2)
    # a frame's neighbours at the dilation's distance stand above and below it in the image
    spare = -(frames + 2 * padding) % dilation
    x_BCHW = F.pad(x_BCT, (padding, padding + spare)).unflatten(2, (-1, dilation))
    y_BCHW = F.conv2d(x_BCHW, weight_C1K.unsqueeze(3), groups=x_BCT.shape[1])
    return y_BCHW.flatten(2)[:, :, :frames]


class GroupShuffle(nn.Module):
    """Interleave the channels of a grouped convolution, so that the next one mixes the groups."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Channel ``g*n + i`` moves to ``i*groups + g``."""
        return x_BCT.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


INITIALIZERS: dict[str | None, Callable[[Tensor], Any]] = {
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "kaiming_uniform": lambda weight: nn.init.kaiming_uniform_(weight, nonlinearity="relu"),
    "kaiming_normal": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    None: lambda weight: None,
}


def initialize_convolutions(module: nn.Module, mode: str | None) -> None:
    """Fill the weights of all convolutions in `module`; `mode` is a name in :data:`INITIALIZERS`."""
    for child in module.modules():
        if isinstance(child, nn.Conv1d):
            INITIALIZERS[mode](child.weight)
