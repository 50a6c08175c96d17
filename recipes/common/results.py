"""What a run has reached, in the last lines of its log."""

import logging
from pathlib import Path
from typing import Any

from lightning_novograd.recipes.asr.training.callbacks.memory import describe_peaks
from lightning_novograd.recipes.common.task import Task

log = logging.getLogger(__name__)


def metric_names(task: Task) -> list[str]:
    """What is measured, in the order of results.json."""
    name = task.module.metric.name
    return [f"{split}_{number}" for number in (name, "loss") for split in ("dev", "test")]


def report(results: dict[str, Any], task: Task, run_dir: Path) -> None:
    """Say the result.

    Args:
        results: what results.json holds.
        task: what was trained.
        run_dir: the run folder.
    """
    log.info(
        "%d epochs, %d optimizer steps of %d %s, %.1f %s/s, %.0f s in all; see %s",
        results["epochs"],
        results["optimizer_steps"],
        results["global_batch_size"],
        task.unit,
        results[task.rate],
        task.unit,
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
