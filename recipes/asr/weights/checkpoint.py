"""Checkpoints of ``train.py``, read as data."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_novograd.errors import DataError
from lightning_novograd.optim.checkpoint.files import load_plain
from lightning_novograd.recipes.asr.model.jasper import JasperCTC

_MODEL_PREFIX = "model."  # of the acoustic model in CTCModule's state dict


def read_checkpoint(path: Path, map_location: str = "cpu") -> dict[str, Any]:
    """A Lightning checkpoint, read as data: no code in it ever runs.

    Args:
        path: the file.
        map_location: `"meta"` reads no weights.

    Raises:
        DataError: it is missing or more than plain data.
    """
    if not os.path.exists(path):  # pathlib would raise for a name that is too long
        raise DataError(f"checkpoint {path} does not exist")
    try:
        checkpoint = load_plain(path, map_location=map_location)
    except OSError as error:
        raise DataError(f"checkpoint {path} cannot be read: {error}") from None
    except DataError as error:
        raise DataError(f"{path} {error}") from None
    if not isinstance(checkpoint, dict):
        raise DataError(f"{path} is no checkpoint of train.py: it holds no mapping")
    return checkpoint


def load_model(path: Path) -> JasperCTC:
    """The acoustic model of a checkpoint of ``train.py``, built from the config that travels in it.

    Raises:
        DataError: it cannot be read, or is none of a speech model.
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
    model = JasperCTC.from_config(hyper_parameters["model"])
    names = [name for name in weights if isinstance(name, str) and name.startswith(_MODEL_PREFIX)]
    try:
        model.load_state_dict({name.removeprefix(_MODEL_PREFIX): weights[name] for name in names})
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise DataError(f"checkpoint {path} does not fit its own config: {reason[:200]}") from None
    return model
