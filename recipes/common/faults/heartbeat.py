"""How far a rank has come: what the others may know of it."""

from typing import Any, NamedTuple

import lightning.pytorch as pl
from torch import Tensor

from lightning_novograd.recipes.common.faults.processes import Process


class Pulse(NamedTuple):
    """One sign of life of a rank.

    Args:
        rank: of all ranks.
        process: which it is.
        tick: counts signs of life. They come from a thread, which a process has that is not stopped.
        count: places that the loop has passed. All ranks pass the same ones, so a rank with fewer is behind.
        in_loop: whether it trains, validates or tests, so that the next place is at most a batch away.
        doing: in words.
    """

    rank: int
    process: Process
    tick: int
    count: int  # type: ignore[assignment]  # a tuple's method
    in_loop: bool
    doing: str

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.process})"


class Heartbeat(pl.Callback):
    """Notes where the loop is: it counts the places that it passes, several in each batch.

    Nothing is counted by a thread, which would go on while the loop hangs. Outside of training, validation and test
    (a corpus is prepared, a model read), how long a rank takes says nothing.

    Attributes:
        count: places passed so far.
        in_loop: whether the next one is at most a batch away.
    """

    def __init__(self) -> None:
        self.count, self.in_loop = 0, False
        self._doing: tuple[str, int, int] = ("starting", 0, 0)

    @property
    def doing(self) -> str:
        """What the rank does, in words."""
        text, epoch, batch = self._doing
        return text.format(epoch=epoch + 1, batch=batch + 1)

    def _pass(self, text: str, epoch: int = 0, batch: int = 0, in_loop: bool = True) -> None:
        # a text of every place of every batch would be made for nothing
        self._doing, self.in_loop = (text, epoch, batch), in_loop
        self.count += 1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The loop begins."""
        self._pass("loading the first batch", trainer.current_epoch)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is loaded."""
        self._pass("epoch {epoch}, forward pass of batch {batch}", trainer.current_epoch, batch_idx)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """The loss is computed."""
        epoch, batch = self._doing[1:]
        self._pass("epoch {epoch}, backward pass of batch {batch}", epoch, batch)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gradients are computed and, at the end of an accumulation window, summed over the ranks."""
        epoch, batch = self._doing[1:]
        self._pass("epoch {epoch}, after the backward pass of batch {batch}", epoch, batch)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The next batch is to be loaded."""
        self._pass("epoch {epoch}, loading the batch after batch {batch}", trainer.current_epoch, batch_idx)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A validation begins."""
        self._pass("loading the first batch of the dev set")

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """One batch of it."""
        self._pass("validation, after batch {batch}", 0, args[2])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Back to training, unless it was a validation by itself."""
        self._pass("after a validation", in_loop=trainer.state.fn == "fit")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The test begins."""
        self._pass("loading the first batch of the test set")

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """One batch of it."""
        self._pass("test, after batch {batch}", 0, args[2])

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """All is measured."""
        self._pass("after the test", in_loop=False)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """A checkpoint is collected, and will be written."""
        self._pass("writing a checkpoint, or loading the batch after it", in_loop=self.in_loop)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The training is over."""
        self._pass("after the training", in_loop=False)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """The loop has ended with an error, which will be said."""
        self._pass("after an error", in_loop=False)
