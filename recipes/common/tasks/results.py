"""What a run has reached, in the last lines of its log."""

import logging
from pathlib import Path
from typing import Any

from lightning_novograd.recipes.common.callbacks.memory import describe_peaks
from lightning_novograd.recipes.common.tasks.task import Task

log = logging.getLogger(__name__)


def metric_names(task: Task) -> list[str]:
    """What is measured, in the order of results.json."""
    name = task.module.metric.name
    return [f"{split}_{number}" for number in (name, "loss") for split in ("dev", "test")]


def report(results: dict[str, Any], task: Task, run_dir: Path, trained: bool = True) -> None:
    """Say the result.

    Args:
        results: what results.json holds.
        task: what was trained.
        run_dir: the run folder.
        trained: whether it was, and not only measured.
    """
    rate = results[task.rate]
    log.info(
        "%s%d epochs, %d optimizer steps of %d %s, %s%.0f s in all; see %s",
        "" if trained else "only measured; the training was " if rate is not None else "only measured; ",
        results["epochs"],
        results["optimizer_steps"],
        results["global_batch_size"],
        task.unit,
        "" if rate is None else f"{rate:.1f} {task.unit}/s, ",
        results["wall_s"],
        run_dir,
    )
    if skipped := results.get("skipped_steps"):
        log.warning("%d of these steps were left out: a loss or a gradient was not finite", skipped)
    if peaks := results.get("peak_memory_mb"):
        log.info("peak memory of the first process: %s", describe_peaks(peaks))
    for split in ("dev", "test"):
        value = results[f"{split}_{task.module.metric.name}"]
        if value is not None:
            log.info("%-4s %s   loss %.4f", split, task.module.metric.show(value), results[f"{split}_loss"])
