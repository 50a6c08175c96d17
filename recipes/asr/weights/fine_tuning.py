"""Fine-tuning: a new model begins with the weights of a trained one."""

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.model.blocks import BlockConfig
from lightning_novograd.recipes.asr.model.encoder import Layer
from lightning_novograd.recipes.asr.model.features import MelConfig
from lightning_novograd.recipes.asr.model.jasper import JasperCTC, ModelConfig

log = logging.getLogger(__name__)

# what may differ: how training disturbs and begins, and how a config was written down
_FREE_OF_MEL = {"dither", "window_size", "window_stride", "n_window_size", "n_window_stride", "n_fft", "highfreq"}
_SAID_OF_MEL = ("window_samples", "stride_samples", "fft_samples", "top_hz")  # instead of the latter
_FREE_OF_BLOCK = {"dropout", "copies", "residual_mode"}


def start_from(model: JasperCTC, trained: JasperCTC, source: str) -> None:
    """Give `model` the weights of `trained`: the encoder's, and the decoder's where both have the same alphabet.

    Args:
        model: new; its decoder stays as it is where the alphabets differ.
        trained: of the same features and blocks; dither, dropout, masks and initialization may differ.
        source: where `trained` is from, for messages.

    Raises:
        ConfigError: features or blocks differ; the first difference is named.
    """
    for name, ours, theirs in _differences(model.config, trained.config):
        raise ConfigError(
            "init_from",
            f"{source} was trained with {name} {theirs}, but this model has {ours}; choose the model=... that it was "
            "trained with",
        )
    model.encoder.load_state_dict(trained.encoder.state_dict())
    if model.alphabet == trained.alphabet:
        model.decoder.load_state_dict(trained.decoder.state_dict())
        log.info("all weights are those of %s", source)
        return
    new, old = (set(m.alphabet.labels) for m in (model, trained))
    if new == old:
        log.info("the encoder has the weights of %s; its alphabet has the same labels in another order, so the decoder "
                 "begins anew: give model.labels in its order to keep it", source)  # fmt: skip
        return
    log.info(
        "the encoder has the weights of %s; its alphabet is another one, so the decoder begins anew (%d labels, it had "
        "%d; not there before: %s; gone: %s)",
        source,
        len(model.alphabet),
        len(trained.alphabet),
        _shown(new - old),
        _shown(old - new),
    )


def _shown(characters: set[str]) -> str:
    return ", ".join(map(repr, sorted(characters))) or "none"


def _differences(model: ModelConfig, trained: ModelConfig) -> Iterator[tuple[str, Any, Any]]:
    """What two models must have in common and have not: its name, ours, theirs."""
    yield from _of("preprocessor.", _mel(model.preprocessor), _mel(trained.preprocessor))
    for name in ("activation", "conv_mask"):
        yield from _of("encoder.", *({name: getattr(config.encoder, name)} for config in (model, trained)))
    for index, (ours, theirs) in enumerate(zip(model.layers, trained.layers, strict=False)):
        yield from _of(f"encoder.jasper[{index}].", _layer(ours), _layer(theirs))
    if len(model.layers) != len(trained.layers):
        yield "encoder.jasper of", f"{len(model.layers)} blocks", f"{len(trained.layers)} blocks (copies counted)"


def _of(path: str, ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name, value in ours.items():
        if value != theirs[name]:
            yield f"{path}{name}", value, theirs[name]


def _mel(config: MelConfig) -> dict[str, Any]:
    kept = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in _FREE_OF_MEL}
    return kept | {name: getattr(config, name) for name in _SAID_OF_MEL}


def _layer(layer: Layer) -> dict[str, Any]:
    names = [f.name for f in dataclasses.fields(BlockConfig) if f.name not in _FREE_OF_BLOCK]
    connected = {name: getattr(layer, name) for name in ("in_channels", "residual_channels", "residual_stride")}
    return {name: getattr(layer.block, name) for name in names} | connected
