"""What the log says of a run's length and memory before its first step."""

import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl

from lightning_novograd.log import rank_zero_logger
from lightning_novograd.recipes.common.batches.memory import describe_state
from lightning_novograd.recipes.common.batches.steps import describe_steps, describe_warmup

log = rank_zero_logger(__name__)


class PlanLog(pl.Callback):
    """Logs the steps of a run, its warmup and the memory of the optimizer's state, when the training begins.

    Args:
        settings: the ``trainer`` block.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Optimizer and schedule are built, and the batches are counted."""
        if not trainer.is_global_zero:
            return
        per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        total = trainer.estimated_stepping_batches
        entry = trainer.lr_scheduler_configs[0] if trainer.lr_scheduler_configs else None
        warmup = "no schedule" if entry is None else describe_warmup(entry.scheduler, entry.interval)
        known = int(total) if math.isfinite(total) else None
        log.info("%s", describe_steps(per_epoch, known, trainer.max_epochs, warmup))
        log.info("%s", describe_state(pl_module, self.settings, trainer.world_size))
