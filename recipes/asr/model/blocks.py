"""Blocks of Jasper and QuartzNet: repeated masked convolutions with residual branches.

Tensors are named with their axes: B batch, C channels, T frames.
"""

import dataclasses
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.model.convolution import (
    Frames,
    GroupShuffle,
    MaskedConv1d,
    conv_lengths,
    convolve,
    padded_conv1d,
)
from lightning_novograd.recipes.common.batch_norm import BatchNorm
from lightning_novograd.recipes.common.section import Section, key

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

    filters: int = key(low=1, high=65536)
    kernel: int = key(low=1, high=65536, single=True)
    residual: bool = key()
    repeat: int = key(1, low=1, high=1000)
    stride: int = key(1, low=1, high=1000, single=True)
    dilation: int = key(1, low=1, high=65536, single=True)
    dropout: float = key(0.0, low=0.0, below=1.0)
    separable: bool = key(False)
    groups: int = key(1, low=1)
    heads: int = key(-1, low=-1)
    residual_dense: bool = key(False)
    residual_mode: str | None = key(None, allowed=["add", "stride_add", None])
    stride_last: bool = key(False)
    kernel_size_factor: float = key(1.0, above=0.0, high=1000.0)
    copies: int = key(1, low=1, high=1000)

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
        >>> import torch
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
            return padded_conv1d(channels, filters, kernel, stride, dilation, groups)
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


def _batch_norm(channels: int) -> BatchNorm:
    return BatchNorm(channels, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)


def _activation(name: str, dropout: float) -> Iterable[nn.Module]:
    activation = ACTIVATIONS[name]
    in_place = {} if activation in (nn.GELU, nn.Identity) else {"inplace": True}
    return activation(**in_place), nn.Dropout(dropout)
