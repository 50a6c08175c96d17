"""The acoustic model: features, a stack of Jasper blocks, and a CTC head, built from NeMo's config."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor, nn

from lightning_novograd.errors import ConfigError, choices
from lightning_novograd.recipes.asr.model.decoder import ConvDecoder, DecoderConfig
from lightning_novograd.recipes.asr.model.encoder import ConvEncoder, EncoderConfig, Layer, plan_layers
from lightning_novograd.recipes.asr.model.features import MelConfig, MelSpectrogram
from lightning_novograd.recipes.asr.model.spec_augment import SpecAugment, SpecAugmentConfig
from lightning_novograd.recipes.asr.text.alphabet import Alphabet
from lightning_novograd.recipes.common.section import join, plain_mapping

# of the losses of a step: the mean over its utterances, that over the characters of their texts, their sum
REDUCTIONS = ("mean_batch", "mean_volume", "sum")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The checked config of a :class:`JasperCTC`; `ctc_reduction` is for whoever trains it."""

    alphabet: Alphabet
    preprocessor: MelConfig
    encoder: EncoderConfig
    decoder: DecoderConfig
    spec_augment: SpecAugmentConfig
    layers: tuple[Layer, ...]
    ctc_reduction: str = "mean_batch"

    @classmethod
    def read(cls, cfg: Any, path: str = "model") -> Self:
        """Check every key, and that the layers fit together.

        Raises:
            ConfigError: names the key or keys at fault.
        """
        mapping = plain_mapping(cfg, path)
        allowed = ("labels", "sample_rate", "ctc_reduction", "preprocessor", "spec_augment", "encoder", "decoder")
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
        reduction = mapping.get("ctc_reduction", "mean_batch")
        if reduction not in REDUCTIONS:
            raise ConfigError(join(path, "ctc_reduction"), f"{reduction!r} is unknown{choices(reduction, REDUCTIONS)}")
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
        return cls(alphabet, preprocessor, encoder, decoder, augment, layers, reduction)


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


class JasperCTC(nn.Module):
    """A Jasper or QuartzNet acoustic model with NeMo's values and state-dict keys.

    Submodules ``preprocessor``, ``encoder`` and ``decoder`` hold all parameters and buffers. The forward pass waits
    for no device and raises on no data: lengths are tensors throughout.

    Args:
        config: a checked config, see :meth:`from_config`.

    Example:
        >>> import torch
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
                names, and optionally ``spec_augment``, ``sample_rate`` and ``ctc_reduction``; see :class:`MelConfig`,
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
