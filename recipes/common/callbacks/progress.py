"""Where a run is, as lines of its log."""

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl

from lightning_novograd.recipes.common.callbacks.loss import MeanLoss
from lightning_novograd.recipes.common.callbacks.rate import Rate
from lightning_novograd.recipes.common.metric import Metric

log = logging.getLogger(__name__)


class ProgressLog(pl.Callback):
    """Logs loss, metric, examples per second and the time left, at an interval and at every validation.

    The loss is the mean over the first rank's examples since the last line, without micro-batches whose loss is not
    finite. The time left is that of the steps so far, validation included.

    Args:
        rate: counts the examples.
        metrics: of the dev set; a training batch may have the first.
        unit: what the examples are called.
        interval: s between two lines.
        extra: attributes of the log records.
    """

    def __init__(
        self,
        rate: Rate,
        metrics: Sequence[Metric],
        unit: str,
        interval: float = 30.0,
        extra: dict[str, Any] | None = None,
    ) -> None:
        self.metrics, self.unit = metrics, unit
        self.rate, self.interval, self.extra = rate, interval, extra
        self._began = self._said = 0.0
        self._first_step = 0
        self._losses = MeanLoss(finite_only=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._began = self._said = time.monotonic()
        self._first_step = trainer.global_step
        self._losses = MeanLoss(finite_only=True)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the loss; say a line when it is time."""
        self._losses.add(trainer, outputs, batch)
        if time.monotonic() - self._said >= self.interval:
            self._say(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say a line with the dev set's numbers."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._say(trainer, dev=True)

    def _say(self, trainer: pl.Trainer, dev: bool = False) -> None:
        self._said = time.monotonic()
        if not trainer.is_global_zero:
            return
        metrics = trainer.callback_metrics
        parts = [f"epoch {trainer.current_epoch + 1}{_of(trainer.max_epochs)}"]
        estimated = trainer.estimated_stepping_batches
        steps = int(estimated) if math.isfinite(estimated) else -1
        parts.append(f"step {trainer.global_step}{_of(steps)}")
        if not math.isnan(loss := self._losses.mean):
            parts.append(f"loss {loss:.4g}")
        self._losses = MeanLoss(finite_only=True)
        first = self.metrics[0]
        if (name := f"train_{first.name}") in metrics:
            parts.append(first.show(float(metrics[name])))
        parts.append(f"{self.rate.mean:.1f} {self.unit}/s")
        if (done := trainer.global_step - self._first_step) > 0 and steps > 0:
            left = (self._said - self._began) / done * max(steps - trainer.global_step, 0)
            parts.append(f"{shown_time(left)} left")
        if dev and f"dev_{first.name}" in metrics:
            of_dev = ", ".join(metric.show(float(metrics[f"dev_{metric.name}"])) for metric in self.metrics)
            parts.append(f"dev: loss {metrics['dev_loss']:.4g}, {of_dev}")
        log.info("%s", ", ".join(parts), extra=self.extra)


def shown_time(seconds: float) -> str:
    """Hours, minutes and seconds.

    Example:
        >>> shown_time(3725.4)
        '1:02:05'
    """
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _of(total: int | None) -> str:
    return f"/{total}" if total is not None and total > 0 else ""
