"""What a run has reached: how it is measured at its end, and what becomes of its results in a run that goes on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import SLURMEnvironment

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.common.checkpoints.reading import read_checkpoint
from lightning_novograd.recipes.common.folder import process_rank
from lightning_novograd.recipes.common.settings.run import CommonSettings
from lightning_novograd.recipes.common.way_on import AVERAGE

# in results.json: what came of the training, not of the measurement behind it
_OF_TRAINING = (
    *("epochs", "global_batch_size", "global_batch_seconds", "wall_s", "peak_memory_mb"),
    *("stopped_early", "skipped_steps"),
)


def measured_weights(settings: CommonSettings, checkpoints: Sequence[ModelCheckpoint], run_dir: Path) -> str | None:
    """The file of the weights that are measured; None for those of the last step.

    Args:
        settings: whose ``checkpoint`` block counts.
        checkpoints: of :func:`build_checkpoints`, the one by the dev result first.
        run_dir: of the run.

    Raises:
        DataError: there are none to choose from.
    """
    if settings.checkpoint.test == "best":
        return best_checkpoint(checkpoints)
    # without a file Lightning takes the one that a SLURM job was requeued with, not the weights that there are
    requeued, last = any(run_dir.glob("hpc_ckpt_*.ckpt")), run_dir / "checkpoints" / "last.ckpt"
    return str(last) if requeued and last.exists() and SLURMEnvironment.detect() else None


def measure(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    data: Any,
    checkpoint: str | None,
    names: Sequence[str],
) -> dict[str, float | None]:
    """Metrics of the dev and the test set; None for those of a set that there is not, or that a limit leaves out.

    Args:
        trainer: after `fit`.
        module: with the weights of the last step.
        data: module, which knows whether it `has_test_set`.
        checkpoint: weights to measure instead.
        names: of the metrics, in the order that they have in results.json.
    """
    metrics: dict[str, float] = {}
    for evaluate in (trainer.validate, trainer.test) if data.has_test_set else (trainer.validate,):
        for measured in evaluate(module, datamodule=data, ckpt_path=checkpoint, verbose=False, weights_only=True):
            metrics.update(measured)
    return {name: metrics.get(name) for name in names}


def best_checkpoint(checkpoints: Sequence[ModelCheckpoint]) -> str:
    """The file of the best epoch by the dev result.

    Raises:
        DataError: none was kept: the training has ended before its first validation.
    """
    best = checkpoints[0].best_model_path
    if not best:
        raise DataError("checkpoint.test is 'best', but the training has ended before its first validation")
    return best


def results_of_training(run_dir: Path, step: int, rate: str) -> dict[str, Any]:
    """What results.json says of a training that has ended, to be kept where it is only measured again.

    Args:
        run_dir: of the run.
        step: optimizer steps of the training.
        rate: the name of its speed.

    Returns:
        No speed, where it says nothing: nothing is trained on now.
    """
    try:
        results = json.loads((run_dir / "results.json").read_text())
    except (OSError, ValueError):
        results = None
    if not isinstance(results, dict) or results.get("optimizer_steps") != step:
        return {rate: None}
    return {name: results[name] for name in (rate, *_OF_TRAINING) if name in results}


def set_results_aside(run_dir: Path) -> None:
    """Give the results of what is continued a name with its number of steps: they are not those of the run to come.

    So too the average that they were measured with.
    """
    if process_rank():
        return
    path, average = run_dir / "results.json", run_dir / "checkpoints" / AVERAGE
    if path.is_file():
        try:
            steps = int(json.loads(path.read_text())["optimizer_steps"])
        except (ValueError, KeyError, TypeError):
            steps = 0
        path.replace(run_dir / f"results_step{steps:07d}.json")
    if average.is_file():
        try:
            reached = read_checkpoint(average, map_location="meta").get("global_step")
        except DataError:  # damaged
            reached = None
        steps = reached if isinstance(reached, int) else 0
        average.replace(average.with_name(f"{average.stem}_step{steps:07d}{average.suffix}"))
