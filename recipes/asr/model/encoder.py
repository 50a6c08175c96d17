"""The encoder: a stack of Jasper blocks, and how each of them is connected."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.model.blocks import ACTIVATIONS, BlockConfig, JasperBlock
from lightning_novograd.recipes.asr.model.convolution import INITIALIZERS, Frames, initialize_convolutions
from lightning_novograd.recipes.common.section import Section, join, key, plain_mapping

MOST_SUB_BLOCKS = 2000  # Jasper 10x5 has 53


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(Section):
    """NeMo's ``encoder`` block.

    Args:
        jasper: the blocks, see :class:`BlockConfig`.
        activation: name in :data:`ACTIVATIONS`.
        feat_in: channels of the features; null for what the preprocessor gives.
        conv_mask: zero the frames beyond each utterance before every convolution.
        residual_mode: what blocks without one of their own start from.
        init_mode: of the convolutions; null leaves torch's.
    """

    jasper: tuple[BlockConfig, ...] = key()
    activation: str = key("relu", allowed=list(ACTIVATIONS))
    feat_in: int | None = key(None, low=1)
    conv_mask: bool = key(True)
    residual_mode: str = key("add", allowed=["add", "stride_add"])
    init_mode: str | None = key("xavier_uniform", allowed=list(INITIALIZERS))

    fixed: ClassVar[dict[str, Any]] = {
        "normalization_mode": "batch",
        "norm_groups": -1,
        "frame_splicing": 1,
        "quantize": False,
    }

    def check(self) -> None:
        """Bound the depth: a file may say anything."""
        if (depth := sum(block.copies * block.repeat for block in self.jasper)) > MOST_SUB_BLOCKS:
            raise ConfigError(
                "jasper", f"has {depth} sub-blocks, copies and repeats counted; at most {MOST_SUB_BLOCKS}"
            )

    @classmethod
    def read(cls, cfg: Any, path: str) -> Self:
        """Build it from a mapping; errors name the block, as ``model.encoder.jasper[3].kernel``."""
        mapping = plain_mapping(cfg, path)
        blocks = mapping.get("jasper")
        if "jasper" in mapping:
            if not isinstance(blocks, (list, tuple)) or not blocks:
                raise ConfigError(join(path, "jasper"), f"must be a list of blocks, not {blocks!r}")
            mapping["jasper"] = tuple(
                BlockConfig.read(block, f"{join(path, 'jasper')}[{i}]") for i, block in enumerate(blocks)
            )
        return super().read(mapping, path)


@dataclasses.dataclass(frozen=True)
class Layer:
    """A block and what it is connected to: one residual branch per entry of `residual_channels`."""

    block: BlockConfig
    in_channels: int
    residual_channels: tuple[int, ...]
    residual_stride: int


def plan_layers(encoder: EncoderConfig, feat_in: int) -> Iterator[Layer]:
    """Connect the blocks of `encoder`, copies written out, as NeMo does.

    The branches of a dense block start at the input of the first dense block and the output of each dense block
    before it. A `residual_mode` stays in force until another block says otherwise.

    Raises:
        ConfigError: a block cannot be connected. Two cases that NeMo accepts are refused because it would add the
            wrong tensors: an ordinary residual block behind a dense one, and dense blocks that are not neighbours.
    """
    channels, mode = feat_in, encoder.residual_mode
    dense_channels: list[int] = []
    in_dense_run = False
    for index, stanza in enumerate(encoder.jasper):
        path = f"jasper[{index}]"
        mode = stanza.residual_mode or mode
        residual_stride = stanza.stride if mode == "stride_add" else 1
        for _ in range(stanza.copies):
            residual_channels: tuple[int, ...] = ()
            if stanza.residual_dense:
                if dense_channels and not in_dense_run:
                    raise ConfigError(f"{path}.residual_dense", "dense blocks must be neighbours")
                dense_channels.append(channels)
                residual_channels = tuple(dense_channels)
            elif stanza.residual:
                if in_dense_run:
                    raise ConfigError(
                        f"{path}.residual", "a residual block behind a dense one must set residual_dense: true too"
                    )
                residual_channels = (channels,)
            if stanza.residual and residual_stride != stanza.total_stride:
                raise ConfigError(*_stride_problem(path, stanza, mode))
            _check_groups(path, stanza, channels, encoder.conv_mask)
            yield Layer(stanza, channels, residual_channels, residual_stride)
            channels, in_dense_run = stanza.filters, stanza.residual_dense


def _stride_problem(path: str, block: BlockConfig, mode: str) -> tuple[str, str]:
    if mode == "add":
        return (
            f"{path}.residual_mode",
            f"the block strides by {block.total_stride} and its residual branch does not; set it to stride_add",
        )
    return (
        f"{path}.stride",
        f"the {block.repeat} sub-blocks stride by {block.total_stride} together and the residual branch by "
        f"{block.stride}; set stride_last: true, or repeat: 1",
    )


def _check_groups(path: str, block: BlockConfig, channels: int, conv_mask: bool) -> None:
    if channels % block.groups:
        raise ConfigError(f"{path}.groups", f"{block.groups} do not divide the {channels} input channels")
    if block.heads > 0:
        if not conv_mask:
            raise ConfigError(f"{path}.heads", "need encoder.conv_mask: true")
        for width in (channels, block.filters) if block.repeat > 1 else (channels,):
            if width % block.heads:
                raise ConfigError(f"{path}.heads", f"{block.heads} do not divide {width} channels")


class ConvEncoder(nn.Module):
    """A stack of Jasper blocks; see :class:`EncoderConfig`."""

    def __init__(self, config: EncoderConfig, layers: tuple[Layer, ...]) -> None:
        super().__init__()
        self.conv_mask = config.conv_mask
        self.encoder = nn.ModuleList(
            JasperBlock(
                layer.block,
                layer.in_channels,
                layer.residual_channels,
                layer.residual_stride,
                config.activation,
                config.conv_mask,
            )
            for layer in layers
        )
        self._dense = [layer.block.residual_dense for layer in layers]
        initialize_convolutions(self, config.init_mode)

    def forward(self, x_BCT: Tensor, lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Encode ``(batch, features, frames)``; frames beyond the returned lengths are not masked."""
        frames = Frames.of(x_BCT, lens_B, self.conv_mask)
        inputs: list[Tensor] = []
        for block, dense in zip(self.encoder, self._dense, strict=True):
            inputs.append(frames.zero_padding(x_BCT))
            x_BCT, frames = block(inputs, frames)
            if not dense:
                inputs.clear()
        return x_BCT, frames.lens_B

    def output_lengths(self, lens_B: Tensor) -> Tensor:
        """Valid output frames of features with these numbers of valid frames."""
        for block in self.encoder:
            lens_B = block.output_lengths(lens_B)  # type: ignore[operator]
        return lens_B
