"""How fast a run trains."""

import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl


class Rate(pl.Callback):
    """Training examples per second over all ranks, validation not counted.

    Args:
        name: under which it is logged.
        size: how many there are in a batch.
    """

    def __init__(self, name: str, size: Callable[[Any], int]) -> None:
        self.name, self.size = name, size
        self.count = 0
        self.seconds = 0.0
        self._since: float | None = None

    @property
    def mean(self) -> float:
        """Examples per second of the training so far; 0.0 before the first batch."""
        return self.count / self.seconds if self.seconds else 0.0

    def _stop(self) -> None:
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None

    def _start(self) -> None:
        self._since = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._start()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Pause: validation is not training."""
        self._stop()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on, unless the epoch is over."""
        if trainer.training:
            self._start()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Go on behind a validation inside the epoch, whose end Lightning does not count as training yet."""
        if self._since is None:
            self._start()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._stop()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch on all ranks."""
        size = self.size(batch)
        self.count += size * trainer.world_size
        self._stop()
        self._start()
        pl_module.log(self.name, self.mean, prog_bar=True, batch_size=size)
