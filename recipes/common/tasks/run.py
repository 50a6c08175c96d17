"""One training run of a task, from a composed config to ``results.json``."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from omegaconf import DictConfig

from lightning_novograd.commands.output import whole_file
from lightning_novograd.recipes.common.batches.memory import count_parameters
from lightning_novograd.recipes.common.batches.optim import planned_optim
from lightning_novograd.recipes.common.batches.plan import plan_batches
from lightning_novograd.recipes.common.callbacks import NonFiniteGuard, ProgressLog, Rate
from lightning_novograd.recipes.common.checkpoints.kept import build_checkpoints
from lightning_novograd.recipes.common.console import FILE_ONLY, shows_bar
from lightning_novograd.recipes.common.data.steps import GlobalBatch
from lightning_novograd.recipes.common.faults.ending import ended_together
from lightning_novograd.recipes.common.folder import claimed_folder, save_config
from lightning_novograd.recipes.common.restart.resume import check_resumed
from lightning_novograd.recipes.common.restart.signals import INBOX, listening
from lightning_novograd.recipes.common.restart.start import Start
from lightning_novograd.recipes.common.results import measure, measured_weights
from lightning_novograd.recipes.common.tasks.curves import TaskCurves
from lightning_novograd.recipes.common.tasks.data import SPLITS, TaskData
from lightning_novograd.recipes.common.tasks.results import metric_names, report
from lightning_novograd.recipes.common.tasks.settings import TaskSettings
from lightning_novograd.recipes.common.tasks.task import Task
from lightning_novograd.recipes.common.trainer import build_trainer, watch

log = logging.getLogger(__name__)


def run(task: Task, cfg: DictConfig, run_dir: Path) -> dict[str, Any]:
    """Train, then measure the dev and the test set.

    Args:
        task: what is trained.
        cfg: the composed config.
        run_dir: folder for everything that the run writes.

    Returns:
        What ``results.json`` holds.

    Raises:
        ConfigError: a key of the config is unknown, misspelt or impossible.
        DataError: the data cannot be used, or the checkpoint of `resume_from`.
        DivergenceError: loss, gradients or weights are NaN or infinite.
        Stopped: a signal has asked for it.
    """
    started = time.perf_counter()
    settings = TaskSettings.read(cfg, "")
    with listening(INBOX), claimed_folder(run_dir, settings.resume_from, settings.resume):
        return _run(task, cfg, settings, run_dir, started)


def _run(task: Task, cfg: DictConfig, settings: TaskSettings, run_dir: Path, started: float) -> dict[str, Any]:
    start = Start(settings, cfg, run_dir)
    data_settings = task.data.read(settings.data, "data")
    plan = plan_batches(settings, data_settings.batch_size)
    log.info("%s", plan)
    optim, lr = planned_optim(settings, plan)
    log.info("%s", lr)
    pl.seed_everything(settings.seed, workers=True, verbose=False)
    module: Any = task.module(settings.model, optim)
    if start.path is not None and start.checkpoint is not None:
        check_resumed(start.path, start.checkpoint, module)
    start.compare(GlobalBatch.planned(plan, None), task.rate)
    sets = data_settings.sets(settings.seed)
    log.info("%s", ", ".join(f"{len(sets[split])} {task.unit} for {split}" for split in SPLITS))
    size, last = plan.per_device_batch_size, settings.large_batch.last
    data: Any = TaskData(sets, data_settings, batch_size=size, seed=settings.seed, unit=task.unit, last=last)
    rate = Rate(task.rate, size=lambda batch: batch.size)
    checkpoints = build_checkpoints(settings, run_dir, task.metric)
    module.guard = NonFiniteGuard(settings.nonfinite.action, settings.nonfinite.max_consecutive)
    extra = {FILE_ONLY: shows_bar(settings.trainer.get("enable_progress_bar") is not False)}
    progress = ProgressLog(rate, [task.module.metric], task.unit, settings.console.interval, extra)
    own = [rate, TaskCurves(run_dir / "curves.png", task), module.guard, progress]
    callbacks, heartbeat, memory = watch(start, own, checkpoints)
    trainer = build_trainer(settings, plan, run_dir, callbacks)
    # from here on the folder changes: a command that is refused leaves the run in it as it was
    save_config(run_dir, cfg)
    start.set_aside()
    with ended_together(trainer, heartbeat, settings.watchdog.timeout, run_dir):
        trainer.fit(module, data, ckpt_path=start.path and str(start.path), weights_only=True)
        weights = measured_weights(settings, checkpoints, run_dir)
        measured = measure(trainer, module, data, weights, metric_names(task))

    results: dict[str, Any] = {
        **measured,
        "epochs": trainer.current_epoch,
        "optimizer_steps": trainer.global_step,
        "global_batch_size": plan.global_batch_size,
        task.rate: round(rate.mean, 2),
        "wall_s": round(time.perf_counter() - started, 2),
        "peak_memory_mb": memory.stages,
        "model_parameters": count_parameters(module.model),
        "optimizer": settings.optim["name"],
    }
    if module.guard.skipped:
        results["skipped_steps"] = module.guard.skipped
    results |= start.of_training
    if trainer.is_global_zero:
        with whole_file(run_dir / "results.json") as partial:
            partial.write_text(json.dumps(results, indent=2) + "\n")
        report(results, task, run_dir, trained=start.length is None)
    return results
