"""The acoustic model: features, a stack of Jasper blocks, and a CTC head, built from NeMo's config."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from lightning_novograd.errors import ConfigError, choices
from lightning_novograd.recipes.asr.model.blocks import ACTIVATIONS, BlockConfig, Frames, JasperBlock
from lightning_novograd.recipes.asr.model.features import MelConfig, MelSpectrogram
from lightning_novograd.recipes.asr.model.spec_augment import SpecAugment, SpecAugmentConfig
from lightning_novograd.recipes.asr.section import Section, join, key, plain_mapping
from lightning_novograd.recipes.asr.text.alphabet import Alphabet

INITIALIZERS: dict[str | None, Callable[[Tensor], Any]] = {
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "kaiming_uniform": lambda weight: nn.init.kaiming_uniform_(weight, nonlinearity="relu"),
    "kaiming_normal": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    None: lambda weight: None,
}


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(Section):
    """NeMo's ``decoder`` block; whatever is left out follows from the encoder and the labels.

    Args:
        feat_in: channels of the encoder's output.
        num_classes: number of labels, without the blank.
        vocabulary: the labels once more.
        init_mode: of the weight.
    """

    feat_in: int | None = key(None, low=1)
    num_classes: int | None = key(None, low=-1)
    vocabulary: list | tuple | None = None
    init_mode: str | None = key("xavier_uniform", allowed=list(INITIALIZERS))

    fixed: ClassVar[dict[str, Any]] = {"add_blank": True}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The checked config of a :class:`JasperCTC`."""

    alphabet: Alphabet
    preprocessor: MelConfig
    encoder: EncoderConfig
    decoder: DecoderConfig
    spec_augment: SpecAugmentConfig
    layers: tuple["Layer", ...]

    @classmethod
    def read(cls, cfg: Any, path: str = "model") -> Self:
        """Check every key, and that the layers fit together.

        Raises:
            ConfigError: names the key or keys at fault.
        """
        mapping = plain_mapping(cfg, path)
        allowed = ("labels", "sample_rate", "preprocessor", "spec_augment", "encoder", "decoder")
        for name in mapping:
            if name not in allowed:
                raise ConfigError(join(path, name), f"unknown key{choices(name, allowed)}")
        for name in ("labels", "encoder"):
            if name not in mapping:
                raise ConfigError(join(path, name), "is missing")
        preprocessor = MelConfig.read(mapping.get("preprocessor", {}), join(path, "preprocessor"))
        encoder = EncoderConfig.read(mapping["encoder"], join(path, "encoder"))
        decoder = DecoderConfig.read(mapping.get("decoder", {}), join(path, "decoder"))
        augment = SpecAugmentConfig.read(mapping.get("spec_augment") or {}, join(path, "spec_augment"))
        if mapping.get("sample_rate", preprocessor.sample_rate) != preprocessor.sample_rate:
            raise ConfigError(
                join(path, "sample_rate"),
                f"{mapping['sample_rate']!r} is not preprocessor.sample_rate ({preprocessor.sample_rate})",
            )
        alphabet = _read_labels(mapping["labels"], path)
        if encoder.feat_in not in (None, preprocessor.features):
            raise ConfigError(
                join(path, "encoder.feat_in"),
                f"{encoder.feat_in} channels, but preprocessor.features gives {preprocessor.features}",
            )
        try:
            layers = tuple(plan_layers(encoder, preprocessor.features))
        except ConfigError as error:
            raise ConfigError(join(join(path, "encoder"), error.path), error.problem) from None
        _check_decoder(decoder, encoder, alphabet, path)
        return cls(alphabet, preprocessor, encoder, decoder, augment, layers)


def _read_labels(labels: Any, path: str) -> Alphabet:
    if not isinstance(labels, (list, tuple)):
        raise ConfigError(join(path, "labels"), f"must be a list of characters, not {labels!r}")
    try:
        return Alphabet(labels)
    except ConfigError as error:
        raise ConfigError(join(path, error.path), error.problem) from None


def _check_decoder(decoder: DecoderConfig, encoder: EncoderConfig, alphabet: Alphabet, path: str) -> None:
    path = join(path, "decoder")
    filters, last = encoder.jasper[-1].filters, len(encoder.jasper) - 1
    if decoder.feat_in not in (None, filters):
        raise ConfigError(
            join(path, "feat_in"), f"{decoder.feat_in} channels, but encoder.jasper[{last}].filters gives {filters}"
        )
    # NeMo takes a num_classes of 0 or -1 from the vocabulary
    if decoder.num_classes not in (None, 0, -1, len(alphabet)):
        raise ConfigError(
            join(path, "num_classes"),
            f"{decoder.num_classes} classes, but there are {len(alphabet)} labels; the blank is not counted",
        )
    if decoder.vocabulary is not None and list(decoder.vocabulary) != alphabet.labels:
        raise ConfigError(join(path, "vocabulary"), "differs from labels; leave it out")


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
        _initialize(self, config.init_mode)

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


class ConvDecoder(nn.Module):
    """A 1x1 convolution to the classes, and log-softmax."""

    def __init__(self, config: DecoderConfig, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.decoder_layers = nn.Sequential(nn.Conv1d(in_channels, num_classes, 1))
        _initialize(self, config.init_mode)

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Log-probabilities ``(batch, frames, classes)``, float32 where the layers compute in half precision."""
        logits_BTV = self.decoder_layers(x_BCT).transpose(1, 2)
        return logits_BTV.log_softmax(dim=-1, dtype=torch.promote_types(logits_BTV.dtype, torch.float32))


def _initialize(module: nn.Module, mode: str | None) -> None:
    for child in module.modules():
        if isinstance(child, nn.Conv1d):
            INITIALIZERS[mode](child.weight)


class JasperCTC(nn.Module):
    """A Jasper or QuartzNet acoustic model with NeMo's values and state-dict keys.

    Submodules ``preprocessor``, ``encoder`` and ``decoder`` hold all parameters and buffers. The forward pass waits
    for no device and raises on no data: lengths are tensors throughout.

    Args:
        config: a checked config, see :meth:`from_config`.

    Example:
        >>> model = JasperCTC.from_config({
        ...     "labels": ["a", "b"],
        ...     "encoder": {"jasper": [{"filters": 8, "kernel": 11, "stride": 2, "residual": False}]},
        ... })
        >>> log_probs_BTV, lens_B = model.eval()(torch.randn(1, 16000), torch.tensor([16000]))
        >>> log_probs_BTV.shape, lens_B
        (torch.Size([1, 56, 3]), tensor([50]))

    Source: NeMo 3.0.0's ``EncDecCTCModel``, ``ConvASREncoder`` and ``ConvASRDecoder``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.alphabet = config.alphabet
        self.preprocessor = MelSpectrogram(config.preprocessor)
        self.spec_augmentation = SpecAugment(config.spec_augment)
        self.encoder = ConvEncoder(config.encoder, config.layers)
        self.decoder = ConvDecoder(config.decoder, config.layers[-1].block.filters, len(config.alphabet) + 1)

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any], path: str = "model") -> Self:
        """Build the model from NeMo's config.

        Args:
            cfg: ``{labels: [...], preprocessor: {...}, encoder: {jasper: [...]}, decoder: {...}}`` with NeMo's key
                names, and optionally ``spec_augment`` and ``sample_rate``; see :class:`MelConfig`,
                :class:`EncoderConfig`, :class:`BlockConfig`, :class:`DecoderConfig`, :class:`SpecAugmentConfig`.
            path: where `cfg` stands in the whole config, for error messages.

        Raises:
            ConfigError: a key is unknown or missing, a value is of the wrong type or impossible, or layers do not
                fit together.
        """
        return cls(ModelConfig.read(cfg, path))

    def forward(self, wave_BS: Tensor, wave_lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities ``(batch, frames, classes)`` and valid frames; the last class is the blank.

        Args:
            wave_BS: waveforms ``(batch, samples)`` at the config's sample rate, within [-1, 1].
            wave_lens_B: valid samples of each.
        """
        x_BCT, lens_B = self.preprocessor(wave_BS, wave_lens_B)
        return self.encode_features(self.spec_augmentation(x_BCT, lens_B), lens_B)

    def encode_features(self, x_BCT: Tensor, lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities and valid frames of features ``(batch, features, frames)``."""
        encoded_BCT, encoded_lens_B = self.encoder(x_BCT, lens_B)
        return self.decoder(encoded_BCT), encoded_lens_B

    def output_lengths(self, wave_lens_B: Tensor) -> Tensor:
        """Valid output frames of waveforms with these numbers of samples."""
        return self.encoder.output_lengths(self.preprocessor.output_lengths(wave_lens_B))
