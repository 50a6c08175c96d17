"""The alphabet of a run: as it is listed, from a file, of the training text, or of the run that it continues."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.data.config import DataConfig
from lightning_novograd.recipes.asr.data.texts import training_texts
from lightning_novograd.recipes.asr.model.jasper import JasperCTC
from lightning_novograd.recipes.asr.text.labels import labels_of, read_labels
from lightning_novograd.recipes.asr.training.module import CTCModule
from lightning_novograd.recipes.asr.weights.source import expand
from lightning_novograd.recipes.common.restart import resume

log = logging.getLogger(__name__)

AUTO = "auto"


def with_labels(
    model: dict[str, Any],
    data: DataConfig,
    resume_from: Path | None = None,
    checkpoint: Mapping[str, Any] | None = None,
    trained: JasperCTC | None = None,
) -> dict[str, Any]:
    """The model's config with its labels as a list; what lists them is returned as it is.

    ``auto`` takes those of the training text, but a run that goes on keeps its own, and fine-tuning keeps those of the
    model that it begins with, and so its decoder, if they have every character of the text.

    Args:
        model: the ``model`` block; `labels` is a list, a path, or ``auto``.
        data: the ``data`` block.
        resume_from: file of `checkpoint`, for messages.
        checkpoint: of a run to continue.
        trained: the model that fine-tuning begins with.

    Raises:
        ConfigError: the checkpoint has no labels.
        DataError: the file or the training manifest cannot be used.
    """
    labels = model.get("labels")
    if not isinstance(labels, str):
        return model
    if labels != AUTO:
        found, source = read_labels(expand(labels)), labels
    elif checkpoint is not None:
        found, source = _saved(checkpoint, resume_from), str(resume_from)
    else:
        found, source = labels_of(training_texts(data)), "the training text"
        if trained is not None and set(found) <= set(trained.alphabet.labels):
            found, source = trained.alphabet.labels, "the model of init_from, which has every one of the training text"
    log.info("%d labels, from %s: %s", len(found), source, "".join(found))
    return {**model, "labels": found}


def check_resumed(path: Path, checkpoint: Mapping[str, Any], module: CTCModule) -> None:
    """Refuse a checkpoint of another alphabet or model.

    Args:
        path: of the checkpoint.
        checkpoint: as :func:`read_resumed` gives it.
        module: which is to go on.

    Raises:
        DataError: its alphabet or its weights are not those of `module`, or are not finite.
    """
    hyper_parameters = checkpoint.get("hyper_parameters")
    model = hyper_parameters.get("model") if isinstance(hyper_parameters, Mapping) else None
    labels = model.get("labels") if isinstance(model, Mapping) else None
    if isinstance(labels, list | tuple) and list(labels) != module.alphabet.labels:
        letters = f"{_letters(labels)}, not {_letters(module.alphabet.labels)} as model.labels says"
        raise DataError(f"{path} has another alphabet: {letters}")
    resume.check_resumed(path, checkpoint, module)


def _saved(checkpoint: Mapping[str, Any], path: Path | None) -> list[str]:
    hyper_parameters = checkpoint.get("hyper_parameters")
    model = hyper_parameters.get("model") if isinstance(hyper_parameters, dict) else None
    labels = model.get("labels") if isinstance(model, dict) else None
    if not isinstance(labels, list):
        raise ConfigError("resume_from", f"{path} is no checkpoint of train.py: it has no labels")
    return labels


def _letters(labels: Any) -> str:
    text = "".join(map(str, labels))
    return f"{text if len(text) <= 60 else f'{text[:57]}...'!r} ({len(labels)})"
