"""The Trainer of a run, with the callbacks that every run has."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
from lightning.pytorch import callbacks as pl_callbacks

from lightning_novograd.large_batch.plan import BatchPlan
from lightning_novograd.recipes.common.batches.log import PlanLog
from lightning_novograd.recipes.common.callbacks import BatchSeed
from lightning_novograd.recipes.common.callbacks.memory import PeakMemory
from lightning_novograd.recipes.common.checkpoints.kept import WholeCheckpoints, last_behind
from lightning_novograd.recipes.common.console import shows_bar
from lightning_novograd.recipes.common.data.steps import GlobalBatch
from lightning_novograd.recipes.common.engines.strategy import build_strategy, layer_sync
from lightning_novograd.recipes.common.faults.heartbeat import Heartbeat
from lightning_novograd.recipes.common.loggers import build_loggers
from lightning_novograd.recipes.common.restart.origin import SameOrigin
from lightning_novograd.recipes.common.restart.place import RestartPoint
from lightning_novograd.recipes.common.restart.signals import INBOX, StopAtSignal
from lightning_novograd.recipes.common.restart.start import Start
from lightning_novograd.recipes.common.settings.run import CommonSettings
from lightning_novograd.training.callbacks import LayerMonitor


class Watch(NamedTuple):
    """The callbacks that watch a run, and those of them that are asked afterwards.

    Args:
        callbacks: in the order in which Lightning calls them.
        heartbeat: where the loop is.
        memory: the run's peaks.
    """

    callbacks: list[pl.Callback]
    heartbeat: Heartbeat
    memory: PeakMemory


def watch(start: Start, own: Sequence[pl.Callback], checkpoints: Sequence[pl.Callback]) -> Watch:
    """The callbacks of a run.

    Args:
        start: where it begins.
        own: of the recipe, among them the guard.
        checkpoints: of :func:`build_checkpoints`.
    """
    settings = start.settings
    heartbeat, memory, origin = Heartbeat(), PeakMemory(), SameOrigin(start.path, start.step)
    callbacks: list[pl.Callback] = [heartbeat, origin, BatchSeed(settings.seed), *own, memory, *checkpoints]
    if settings.layer_monitor is not None:
        callbacks.append(LayerMonitor(settings.layer_monitor, start.run_dir))
    return Watch(callbacks, heartbeat, memory)


def build_trainer(settings: CommonSettings, plan: BatchPlan, run_dir: Path, callbacks: list[pl.Callback]) -> pl.Trainer:
    """The Trainer of the ``trainer`` block, with the plan's accumulation, the run's loggers, and a way to end early."""
    loggers = build_loggers(settings, run_dir)
    # the rows of a run that has ended stay, whatever is made of it
    cuts = settings.resume == "auto" or not (run_dir / "results.json").exists()
    batch = GlobalBatch.planned(plan, settings.data.get("batch_seconds"))
    callbacks = [*last_behind(callbacks), RestartPoint(cuts, batch), StopAtSignal(INBOX, run_dir / "checkpoints")]
    if loggers:
        callbacks = [*callbacks, pl_callbacks.LearningRateMonitor(logging_interval="step")]
    given = settings.trainer.get("plugins") or []
    plugins = [*(given if isinstance(given, list) else [given]), WholeCheckpoints()]
    if sync := layer_sync(settings.trainer, plan.world_size):
        plugins.append(sync)
    return pl.Trainer(
        **{
            **settings.trainer,
            "strategy": build_strategy(settings.distributed, settings.trainer, plan.world_size),
            "sync_batchnorm": bool(settings.trainer.get("sync_batchnorm")) and sync is None,
            "accumulate_grad_batches": plan.accumulate_grad_batches,
            "enable_progress_bar": shows_bar(settings.trainer.get("enable_progress_bar") is not False),
            "plugins": plugins,
        },
        logger=loggers,
        callbacks=[*callbacks, PlanLog(settings.trainer)],
        default_root_dir=run_dir,
        use_distributed_sampler=False,
    )
