"""The mean of several checkpoints of one run."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_novograd.commands.output import whole_file
from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.model.jasper import JasperCTC
from lightning_novograd.recipes.asr.weights.checkpoint import model_of
from lightning_novograd.recipes.asr.weights.run_folder import best_checkpoints, config_of, last_checkpoints
from lightning_novograd.recipes.common.checkpoints.reading import read_checkpoint
from lightning_novograd.recipes.common.way_on import AVERAGE

log = logging.getLogger(__name__)

_KEPT_BY = {"best": best_checkpoints, "last": last_checkpoints}
# of the newest checkpoint; what only training needs stays out
_KEPT = ("epoch", "global_step", "pytorch-lightning_version", "hyper_parameters", "hparams_name")


def average(paths: Sequence[Path]) -> dict[str, Any]:
    """A checkpoint whose weights are the mean of those of others: ``mean = sum(weights) / count``, in float64.

    BatchNorm's statistics are averaged too; integers, as its count of batches, are those of the newest checkpoint. Of
    a run with ``optim.ema`` they are means of moving averages, which is what its checkpoints have as weights.

    Args:
        paths: checkpoints of one model, at least one.

    Raises:
        DataError: one cannot be read, or they are of different models; the message names both.
    """
    steps = {path: _step(path) for path in paths}
    newest = max(paths, key=lambda path: steps[path])
    first = read_checkpoint(newest)
    weights = _weights(first, newest)
    sums = {name: value.double() for name, value in weights.items() if _has_mean(value)}
    for path in paths:
        if path is newest:
            continue
        checkpoint = read_checkpoint(path)
        _check_same(checkpoint, path, first, newest)
        for name, value in _weights(checkpoint, path).items():
            if name in sums:
                sums[name] += value
    means = {name: (value / len(paths)).to(weights[name].dtype) for name, value in sums.items()}
    return {
        **{name: first[name] for name in _KEPT if name in first},
        "state_dict": weights | means,
        "averaged": [path.name for path in paths],
    }


def average_model(run: Path, which: str, count: int) -> tuple[JasperCTC, list[Path]]:
    """The mean of the best or of the last epochs of a run, and the files that it was made of.

    Args:
        run: the run folder.
        which: ``"best"`` (by dev WER) or ``"last"``.
        count: how many epochs.

    Raises:
        DataError: the run has not kept them, or they cannot be used.
    """
    config_of(run)  # else it is no run
    paths = _KEPT_BY[which](run)
    if len(paths) < count:
        keep = f"checkpoint.save_top_k={count}" if which == "best" else f"checkpoint.average={count}"
        raise DataError(f"{run} has kept {len(paths)} {which} epochs, not {count}: train with {keep}")
    return model_of(average(paths[:count]), run).eval(), paths[:count]


def write_average(run: Path, which: str, count: int) -> list[Path]:
    """Write it as ``checkpoints/average.ckpt`` of the run, whole or not at all; of fewer epochs if there are no more.

    Returns:
        The files that it was made of.

    Raises:
        ConfigError: the file cannot be written.
        DataError: the run has kept none, or they cannot be used.
    """
    paths = _KEPT_BY[which](run)[:count]
    if not paths:
        raise DataError(f"{run} has kept none of its {which} epochs: there is nothing to average")
    if len(paths) < count:
        log.warning("there are only %d epochs to average, not checkpoint.average=%d", len(paths), count)
    with whole_file(run / "checkpoints" / AVERAGE) as partial:
        torch.save(average(paths), partial)
    return paths


def _step(path: Path) -> int:
    step = read_checkpoint(path, map_location="meta").get("global_step")
    if not isinstance(step, int):
        raise DataError(f"{path} is no checkpoint of train.py: it lacks global_step")
    return step


def _has_mean(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _weights(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    weights = checkpoint.get("state_dict")
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise DataError(f"{path} is no checkpoint of train.py: it lacks state_dict")
    return weights


def _check_same(checkpoint: Mapping[str, Any], path: Path, first: Mapping[str, Any], newest: Path) -> None:
    models = [_model_config(content) for content in (checkpoint, first)]
    weights = [_weights(content, file) for content, file in ((checkpoint, path), (first, newest))]
    shapes = [{name: value.shape for name, value in of_one.items()} for of_one in weights]
    if models[0] != models[1] or shapes[0] != shapes[1]:
        odd = next((name for name in shapes[1] if shapes[0].get(name) != shapes[1][name]), None)
        where = f" ({odd})" if odd else ""
        raise DataError(f"{path} and {newest} are of different models{where}: there is no average of them")


def _model_config(checkpoint: Mapping[str, Any]) -> Any:
    hyper_parameters = checkpoint.get("hyper_parameters")
    return hyper_parameters.get("model") if isinstance(hyper_parameters, Mapping) else None
