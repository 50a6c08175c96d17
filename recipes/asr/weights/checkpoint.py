"""Speech models in the checkpoints of ``train.py``."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_novograd.config.data import to_plain
from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.model.jasper import JasperCTC, ModelConfig
from lightning_novograd.recipes.common.checkpoints.finite import check_finite
from lightning_novograd.recipes.common.checkpoints.reading import read_checkpoint

_MODEL_PREFIX = "model."  # of the acoustic model in CTCModule's state dict


def longest_utterance(path: Path) -> float | None:
    """Of the training set that a checkpoint's model has learnt from, in s; None where it does not say.

    Raises:
        DataError: it cannot be read.
    """
    data = read_checkpoint(path, map_location="meta").get("SpeechDataModule")
    longest = data.get("longest") if isinstance(data, Mapping) else None
    return longest if isinstance(longest, float) and 0 < longest < math.inf else None


def load_model(path: Path) -> JasperCTC:
    """The acoustic model of a checkpoint of ``train.py``, built from the config that travels in it.

    Raises:
        DataError: it cannot be read, is none of a speech model, or has weights that are not finite.
        ConfigError: its config is not one of a Jasper or QuartzNet CTC model.
    """
    return model_of(read_checkpoint(path), path)


def model_of(checkpoint: Mapping[str, Any], path: Path) -> JasperCTC:
    """The acoustic model of a checkpoint that was read; `path` is for messages.

    Raises:
        DataError: it is none of a speech model.
    """
    hyper_parameters, weights = checkpoint.get("hyper_parameters"), checkpoint.get("state_dict")
    if not isinstance(hyper_parameters, dict) or "model" not in hyper_parameters or not isinstance(weights, dict):
        raise DataError(f"{path} is no checkpoint of train.py: it lacks hyper_parameters.model or state_dict")
    names = [name for name in weights if isinstance(name, str) and name.startswith(_MODEL_PREFIX)]
    state_dict = {name.removeprefix(_MODEL_PREFIX): weights[name] for name in names}
    config = ModelConfig.read(to_plain(hyper_parameters["model"], "model"))
    try:
        model = build_fitting(config, state_dict)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise DataError(f"checkpoint {path} does not fit its own config: {reason[:200]}") from None
    check_finite(path, model.state_dict())
    return model


def build_fitting(config: ModelConfig, state_dict: dict[str, Any]) -> JasperCTC:
    """A model with these weights.

    Args:
        config: of the model.
        state_dict: its weights.

    Raises:
        RuntimeError: they do not fit, as `load_state_dict` says it.
    """
    shapes = {name: v.to("meta") if isinstance(v, Tensor) else v for name, v in state_dict.items()}
    outline(config, len(state_dict)).load_state_dict(shapes, assign=True)
    model = JasperCTC(config)
    model.load_state_dict(state_dict)
    return model


def outline(config: ModelConfig, weights: int) -> JasperCTC:
    """A model that takes no memory, to be compared with weights that there are before it is built.

    The config may be a stranger's, and say that the model is larger than any memory.

    Args:
        config: of the model.
        weights: how many there are.

    Raises:
        RuntimeError: it has more layers than that.
    """
    convolutions = sum(layer.block.repeat + len(layer.residual_channels) for layer in config.layers)
    if convolutions > weights > 0:
        raise RuntimeError(f"it has {convolutions} convolutions, but {weights} weights are there")
    with torch.device("meta"):
        return JasperCTC(config)
