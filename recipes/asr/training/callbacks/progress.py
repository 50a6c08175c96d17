"""Where a run is, as lines of its log."""

import logging
import math
import time
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_novograd.recipes.asr.data.dataset import Batch
from lightning_novograd.recipes.asr.training.callbacks.rate import UtteranceRate

log = logging.getLogger(__name__)


class ProgressLog(pl.Callback):
    """Logs loss, WER, utterances per second and the time left, at an interval and at every validation.

    The loss is the mean over this rank's micro-batches since the last line, without those that are not finite. The time
    left is that of the steps so far, validation included.

    Args:
        rate: counts the utterances.
        interval: s between two lines.
        extra: attributes of the log records.
    """

    def __init__(self, rate: UtteranceRate, interval: float = 30.0, extra: dict[str, Any] | None = None) -> None:
        self.rate, self.interval, self.extra = rate, interval, extra
        self._began = self._said = 0.0
        self._first_step = 0
        self._losses: Tensor | None = None  # their sum and number, on the device

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._began = self._said = time.monotonic()
        self._first_step = trainer.global_step
        self._losses = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Take the loss; say a line when it is time."""
        # Lightning divides the loss by the number of micro-batches
        loss = outputs["loss"].detach().float() * trainer.accumulate_grad_batches
        seen = torch.stack([loss.nan_to_num(0.0, 0.0, 0.0), torch.isfinite(loss).float()])
        self._losses = seen if self._losses is None else self._losses + seen
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
        if self._losses is not None and self._losses[1]:
            parts.append(f"loss {self._losses[0] / self._losses[1]:.4g}")
        self._losses = None
        if "train_wer" in metrics:
            parts.append(f"WER {100 * metrics['train_wer']:.2f} %")
        parts.append(f"{self.rate.mean:.1f} utterances/s")
        if (done := trainer.global_step - self._first_step) > 0 and steps > 0:
            left = (self._said - self._began) / done * max(steps - trainer.global_step, 0)
            parts.append(f"{shown_time(left)} left")
        if dev and "dev_wer" in metrics:
            parts.append(
                f"dev: loss {metrics['dev_loss']:.4g}, WER {100 * metrics['dev_wer']:.2f} %, "
                f"CER {100 * metrics['dev_cer']:.2f} %"
            )
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
