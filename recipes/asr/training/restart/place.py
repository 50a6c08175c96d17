"""Where in the training a checkpoint was saved, so that a run goes on there as if nothing had been."""

import logging
from collections.abc import Mapping, MutableMapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger

from lightning_novograd.log import rank_zero_logger

log: logging.Logger = rank_zero_logger(__name__)

LOGGED = "logged"  # key of checkpoints: what the loggers had, and what they were about to get
_SPLIT = ("world_size", "batch_size", "batch_seconds", "accumulate")
# of a validation that is about to begin, as Lightning knows one that it was interrupted in: then it validates again
_PENDING = {"ready": 1, "started": 1, "processed": 0, "completed": 0}


class RestartPoint(pl.Callback):
    """Has a run go on from where its checkpoint was saved, which Lightning 2.6 does except in these cases.

    - Saved behind the last batch before a validation, or behind the last one of an epoch: Lightning takes validation
      and the end of the epoch for done. Here they are still to come.
    - Saved inside a validation, at a signal: it begins anew, as its sums are in no checkpoint.
    - ``metrics.csv`` of a run that was killed has rows of steps that are made again, and lacks that of the step at
      whose end the checkpoint was saved. The first are cut off, the second travels in the checkpoint.
    - A schedule that waits for a plateau misses the end of the epoch that a run goes on in.
    - Another number of ranks or another accumulation: Lightning counts micro-batches, and steps are what counts.
    """

    def __init__(self) -> None:
        self._row: Mapping[str, Any] | None = None  # that is to be logged first

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note what comes next."""
        if trainer.state.fn != "fit":
            return
        epoch_loop, loops = trainer.fit_loop.epoch_loop, checkpoint["loops"]["fit_loop"]
        current = epoch_loop.batch_progress.current
        is_at_batch_end = trainer.training and current.processed == current.completed + 1
        checkpoint[LOGGED] = {"rows": _rows(trainer), "row": _next_row(trainer) if is_at_batch_end else None}
        validation = epoch_loop.val_loop.batch_progress
        if trainer.validating and validation.current.completed < validation.current.processed:
            _set_pending(loops["epoch_loop.val_loop.batch_progress"])
        if not is_at_batch_end:
            return
        progress = loops["epoch_loop.batch_progress"]
        validates = epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
        if validates:
            _set_pending(loops["epoch_loop.val_loop.batch_progress"])
        elif progress["is_last_batch"]:
            loops["epoch_loop.state_dict"]["_batches_that_stepped"] += 1  # which comes before the end of the epoch
        if validates or progress["is_last_batch"]:
            for counts in (progress["current"], progress["total"]):
                counts["completed"] = counts["processed"]

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Cut off the rows that come again; count in micro-batches of now."""
        if trainer.state.fn != "fit":
            return
        loops = checkpoint["loops"]["fit_loop"]
        loaders = loops.get("state_dict", {}).get("combined_loader")
        if loaders and "accumulate" in loaders[0]:
            compare_split(loaders[0], trainer, loops)
        if (logged := checkpoint.get(LOGGED)) is not None:
            self._row = logged["row"]
            _cut(trainer, logged["rows"])

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run that begins has no rows: those that there are were left by one that was killed before it saved."""
        if not trainer.ckpt_path:
            _cut(trainer, 0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the row of the step at whose end the checkpoint was saved."""
        if self._row is not None:
            trainer._logger_connector.log_metrics(dict(self._row["metrics"]), step=self._row["step"])
            self._row = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count no batch of the validation that was interrupted."""
        if trainer.state.fn == "fit":
            trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset_on_restart()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let Lightning step schedules that wait for a plateau: this epoch's metrics are there."""
        trainer.fit_loop._restarting = False


def compare_split(saved: Mapping[str, Any], trainer: pl.Trainer, loops: MutableMapping[str, Any]) -> None:
    """Say that a run goes on with another split of its global batch, and count in micro-batches of the new one.

    Args:
        saved: the state of the sampler, see `GlobalBatchSampler.state_dict`.
        trainer: which goes on.
        loops: Lightning's counters, which are changed.
    """
    accumulate = trainer.accumulate_grad_batches
    for counts in loops["epoch_loop.batch_progress"].values() if saved["accumulate"] != accumulate else ():
        if isinstance(counts, dict):
            done, open_ones = counts["processed"], counts["processed"] - counts["completed"]
            batches = done // saved["accumulate"] * accumulate
            counts.update(ready=batches, started=batches, processed=batches, completed=max(batches - open_ones, 0))
    if (saved["world_size"], saved["accumulate"]) != (trainer.world_size, accumulate):
        log.warning(
            "the checkpoint is of %d ranks and %d accumulated micro-batches, and the run goes on with %d and %d: where "
            "the global batch is the same, so are its utterances and the learning rate, but not their order in it; the "
            "result is not bit for bit that of the run that was interrupted",
            saved["world_size"],
            saved["accumulate"],
            trainer.world_size,
            accumulate,
        )


def _set_pending(progress: MutableMapping[str, Any]) -> None:
    earlier = progress["total"]["completed"] - progress["current"]["completed"]  # validations of this epoch
    progress["current"], progress["is_last_batch"] = dict(_PENDING), False
    progress["total"] = {name: count + earlier for name, count in _PENDING.items()}


def _writers(trainer: pl.Trainer) -> list[Any]:
    loggers = (logger for logger in trainer.loggers if isinstance(logger, CSVLogger)) if trainer.is_global_zero else ()
    return [logger.experiment for logger in loggers]


def _rows(trainer: pl.Trainer) -> list[int]:
    """Rows of every metrics.csv, all of them on the disk."""
    for writer in _writers(trainer):
        writer.save()
    return [writer.rows for writer in _writers(trainer)]


def _cut(trainer: pl.Trainer, rows: list[int] | int) -> None:
    writers = _writers(trainer)
    for writer, kept in zip(writers, rows if isinstance(rows, list) else [rows] * len(writers), strict=False):
        writer.cut(kept)


def _next_row(trainer: pl.Trainer) -> dict[str, Any] | None:
    """What Lightning logs of the step once the batch has ended."""
    connector = trainer._logger_connector
    if trainer.fit_loop._should_accumulate() or not connector.should_update_logs:
        return None
    metrics = {
        name: value.item() if hasattr(value, "item") else value for name, value in connector.metrics["log"].items()
    }
    if not metrics:
        return None
    step = metrics.pop("step", trainer.fit_loop.epoch_loop._batches_that_stepped)
    return {"step": int(step), "metrics": {**metrics, "epoch": trainer.current_epoch}}
