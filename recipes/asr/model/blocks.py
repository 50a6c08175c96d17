"""Blocks of Jasper and QuartzNet: repeated masked convolutions with residual branches.

Tensors are named with their axes: B batch, C channels, T frames.
"""

import dataclasses
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.section import Section, key

# every one maps 0 to 0, so that masked frames stay masked behind it
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "hardtanh": nn.Hardtanh,
    "selu": nn.SELU,
    "swish": nn.SiLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "identity": nn.Identity,
}
BATCH_NORM_EPS = 1e-3
BATCH_NORM_MOMENTUM = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig(Section):
    """One entry of NeMo's ``jasper:`` list; names and defaults are NeMo's, except `copies`.

    `kernel`, `stride` and `dilation` are numbers or NeMo's lists of one number.

    Args:
        filters: output channels.
        kernel: width of the convolutions, in frames; an even one is rounded up to the next odd one, as in NeMo.
        residual: add the block's input, through a 1x1 convolution and batch norm, before the last activation.
        repeat: sub-blocks.
        stride: of every sub-block, or with `stride_last` of the last one only.
        dilation: of the convolutions; stride and dilation cannot both be above 1.
        dropout: probability, after every activation.
        separable: depthwise convolution followed by a 1x1 one (QuartzNet) instead of a full one (Jasper).
        groups: groups of the full or 1x1 convolutions, with their channels shuffled afterwards.
        heads: number of distinct depthwise kernels, shared by channels in turn; -1 for one per channel.
        residual_dense: add the inputs of all preceding dense blocks too (Jasper DR).
        residual_mode: ``add``, or ``stride_add`` where the residual branch must stride like the block. As in NeMo it
            also holds for the blocks that follow, until one says otherwise.
        stride_last: only the last sub-block strides.
        kernel_size_factor: multiplies `kernel`.
        copies: the block stands this many times in a row.
    """

    filters: int = key(low=1)
    kernel: int = key(low=1, single=True)
    residual: bool = key()
    repeat: int = key(1, low=1)
    stride: int = key(1, low=1, single=True)
    dilation: int = key(1, low=1, single=True)
    dropout: float = key(0.0, low=0.0, below=1.0)
    separable: bool = key(False)
    groups: int = key(1, low=1)
    heads: int = key(-1, low=-1)
    residual_dense: bool = key(False)
    residual_mode: str | None = key(None, allowed=["add", "stride_add", None])
    stride_last: bool = key(False)
    kernel_size_factor: float = key(1.0, above=0.0)
    copies: int = key(1, low=1)

    fixed: ClassVar[dict[str, Any]] = {"se": False, "future_context": -1}

    def check(self) -> None:
        """Refuse combinations that cannot be computed."""
        if self.stride > 1 and self.dilation > 1:
            raise ConfigError("dilation", f"{self.dilation} with stride {self.stride}: only one of them can be above 1")
        if self.residual_dense and not self.residual:
            raise ConfigError("residual_dense", "needs residual: true")
        if self.residual_dense and self.stride > 1:
            raise ConfigError(
                "residual_dense", f"does not go with stride {self.stride}: all its inputs need one length"
            )
        if self.heads == 0 or (self.heads > 0 and not self.separable):
            raise ConfigError("heads", f"{self.heads} is impossible; -1, or above 0 with separable: true")
        if self.filters % self.groups:
            raise ConfigError("groups", f"{self.groups} do not divide the {self.filters} filters")
        if self.kernel % 2 == 0 and self.kernel_size_factor == 1.0:
            warnings.warn(
                f"kernel {self.kernel} is even and becomes {self.kernel_size}, as in NeMo", UserWarning, stacklevel=2
            )

    @property
    def kernel_size(self) -> int:
        """The odd width that the convolutions have."""
        return max(int(self.kernel * self.kernel_size_factor), 1) // 2 * 2 + 1

    @property
    def total_stride(self) -> int:
        """Input frames per output frame."""
        return self.stride if self.stride_last else self.stride**self.repeat


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
        self.conv = _conv1d(in_channels, out_channels, kernel, stride, dilation, groups)

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Convolve ``(batch, channels, frames)``."""
        if self.heads == -1:
            return convolve(self.conv, x_BCT)
        batch, channels, _ = x_BCT.shape
        y = convolve(self.conv, x_BCT.reshape(batch * channels // self.heads, self.heads, -1))
        return y.reshape(batch, channels, -1)


def _conv1d(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Conv1d:
    padding = dilation * (kernel - 1) // 2
    return nn.Conv1d(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False)


# activations of this many values at a time stay in a CPU's cache; larger batches are convolved in slices
_SLICE_VALUES = 1 << 20


def convolve(conv: nn.Conv1d, x_BCT: Tensor) -> Tensor:
    """``conv(x_BCT)``, with a faster evaluation of depthwise convolutions on the CPU.

    Laid out as images of width 1 they take oneDNN's vectorized depthwise kernels, 2 to 9 times as fast as
    ``conv1d`` forward and backward (``benchmarks/depthwise_conv.py``). The padding is made beforehand because those
    kernels compute wrong weight gradients when they pad more than about 20 frames themselves (torch 2.13).
    """
    depthwise = conv.groups == conv.in_channels == conv.out_channels and conv.kernel_size[0] > 1
    plain = conv.stride[0] == conv.dilation[0] == 1
    if not (depthwise and plain and _onednn_computes(x_BCT)):
        return conv(x_BCT)
    size = max(1, _SLICE_VALUES // (x_BCT.shape[1] * x_BCT.shape[2]))
    if size >= len(x_BCT):
        return _depthwise(x_BCT, conv.weight)
    return torch.cat([_depthwise(part, conv.weight) for part in x_BCT.split(size)])


def _onednn_computes(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
    )


def _depthwise(x_BCT: Tensor, weight_C1K: Tensor) -> Tensor:
    padding = weight_C1K.shape[-1] // 2
    x_BCT1 = F.pad(x_BCT, (padding, padding)).unsqueeze(3)
    return F.conv2d(x_BCT1, weight_C1K.unsqueeze(3), groups=x_BCT.shape[1]).squeeze(3)


class GroupShuffle(nn.Module):
    """Interleave the channels of a grouped convolution, so that the next one mixes the groups."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Channel ``g*n + i`` moves to ``i*groups + g``."""
        return x_BCT.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


class JasperBlock(nn.Module):
    """`repeat` sub-blocks of convolution, batch norm, activation and dropout, with residual branches.

    The residual branches are added before the last activation::

        y = act(sub_blocks(x_n) + sum_i norm_i(conv1x1_i(x_i)))

    Invalid frames are zero before every convolution, but not in the output. State-dict keys are NeMo's: ``mconv.i``
    counts all modules of all sub-blocks, ``res.j`` are the branches. An input of no valid frame has no valid output
    frame, where NeMo counts one behind a stride.

    Args:
        config: see :class:`BlockConfig`.
        in_channels: channels of the block's input.
        residual_channels: channels of each input with a residual branch; empty without residual.
        residual_stride: stride of the residual branches.
        activation: name in :data:`ACTIVATIONS`.
        conv_mask: whether the convolutions are masked; decides NeMo's key, ``conv.weight`` or ``weight``.

    Example:
        >>> block = JasperBlock(BlockConfig(filters=8, kernel=5, residual=True, separable=True), 4, (4,))
        >>> x_BCT, lens_B = torch.randn(2, 4, 30), torch.tensor([30, 20])
        >>> frames = Frames.of(x_BCT, lens_B, masked=True)
        >>> y_BCT, frames = block([frames.zero_padding(x_BCT)], frames)
        >>> y_BCT.shape, frames.lens_B
        (torch.Size([2, 8, 30]), tensor([30, 20]))

    Source: Jasper (arXiv:1904.03288), QuartzNet (arXiv:1910.10261), NeMo 3.0.0.
    """

    def __init__(
        self,
        config: BlockConfig,
        in_channels: int,
        residual_channels: Sequence[int] = (),
        residual_stride: int = 1,
        activation: str = "relu",
        conv_mask: bool = True,
    ) -> None:
        super().__init__()
        self.conv_mask = conv_mask
        modules: list[nn.Module] = []
        masked_behind: set[int] = set()
        for index in range(config.repeat):
            last = index == config.repeat - 1
            stride = config.stride if last or not config.stride_last else 1
            modules += self._sub_block(config, in_channels if index == 0 else config.filters, stride)
            if config.separable:
                masked_behind.add(len(modules) - 3 - (config.groups > 1))
            if not last:
                masked_behind.add(len(modules) - 1)
                modules += _activation(activation, config.dropout)
        self.mconv = nn.ModuleList(modules)
        self._masked_behind = frozenset(masked_behind)
        self.res = nn.ModuleList(
            nn.ModuleList([self._conv(channels, config.filters, 1, residual_stride), _batch_norm(config.filters)])
            for channels in residual_channels
        )
        self.mout = nn.Sequential(*_activation(activation, config.dropout))

    def _conv(
        self,
        channels: int,
        filters: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        heads: int = -1,
    ) -> nn.Module:
        if not self.conv_mask:
            return _conv1d(channels, filters, kernel, stride, dilation, groups)
        return MaskedConv1d(channels, filters, kernel, stride, dilation, groups, heads)

    def _sub_block(self, config: BlockConfig, channels: int, stride: int) -> list[nn.Module]:
        c = config
        if c.separable:
            modules = [
                self._conv(channels, channels, c.kernel_size, stride, c.dilation, groups=channels, heads=c.heads),
                self._conv(channels, c.filters, 1, groups=c.groups),
            ]
        else:
            modules = [self._conv(channels, c.filters, c.kernel_size, stride, c.dilation, c.groups)]
        modules.append(_batch_norm(c.filters))
        if c.groups > 1:
            modules.append(GroupShuffle(c.groups))
        return modules

    def forward(self, inputs: Sequence[Tensor], frames: Frames) -> tuple[Tensor, Frames]:
        """Output ``(batch, filters, frames)``, not masked, and its valid frames.

        Args:
            inputs: the block's input, preceded by those of earlier dense blocks; zero beyond the valid frames.
            frames: their valid frames.
        """
        x_BCT, at = inputs[-1], frames
        for index, module in enumerate(self.mconv):
            x_BCT, at = _apply(module, x_BCT, at)
            if index in self._masked_behind:
                x_BCT = at.zero_padding_(x_BCT)
        for branch, residual in zip(self.res, inputs, strict=False):
            for module in branch:  # type: ignore[attr-defined]
                residual, _ = _apply(module, residual, frames)
            x_BCT = x_BCT + residual
        return self.mout(x_BCT), at

    def output_lengths(self, lens_B: Tensor) -> Tensor:
        """Valid output frames of inputs with these numbers of valid frames."""
        for module in self.mconv:
            conv = _conv_of(module)
            if conv is not None:
                lens_B = conv_lengths(conv, lens_B)
        return lens_B


def _conv_of(module: nn.Module) -> nn.Conv1d | None:
    if isinstance(module, MaskedConv1d):
        return module.conv
    return module if isinstance(module, nn.Conv1d) else None


def _apply(module: nn.Module, x_BCT: Tensor, frames: Frames) -> tuple[Tensor, Frames]:
    conv = _conv_of(module)
    if conv is None:
        return module(x_BCT), frames
    y_BCT = convolve(conv, x_BCT) if conv is module else module(x_BCT)
    return y_BCT, frames.behind(conv, y_BCT)


def _batch_norm(channels: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(channels, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)


def _activation(name: str, dropout: float) -> Iterable[nn.Module]:
    activation = ACTIVATIONS[name]
    in_place = {} if activation in (nn.GELU, nn.Identity) else {"inplace": True}
    return activation(**in_place), nn.Dropout(dropout)
