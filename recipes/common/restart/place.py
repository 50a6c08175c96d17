"""Where in the training a checkpoint was saved, so that a run goes on there as if nothing had been."""

import logging
import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_novograd.log import rank_zero_logger
from lightning_novograd.recipes.common.data.steps import GlobalBatch

log: logging.Logger = rank_zero_logger(__name__)

LOGGED = "logged"  # key of checkpoints: what the loggers had, and what they were about to get
# where a ModelCheckpoint keeps paths, besides best_k_models
_KEPT = ("best_model_path", "kth_best_model_path", "last_model_path")
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
    - Another folder, or the same one moved: Lightning forgets which epochs were the best.

    Args:
        cuts: whether rows are cut off; one that has ended, and is continued from an earlier step, keeps them.
        batch: of the run that goes on.
    """

    def __init__(self, cuts: bool = True, batch: GlobalBatch | None = None) -> None:
        self.cuts, self.batch = cuts, batch
        self._row: Mapping[str, Any] | None = None  # that is to be logged first

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note what comes next."""
        if trainer.state.fn != "fit":
            return
        epoch_loop, loops = trainer.fit_loop.epoch_loop, checkpoint["loops"]["fit_loop"]
        current: Any = epoch_loop.batch_progress.current
        is_at_batch_end = trainer.training and current.processed == current.completed + 1
        checkpoint[LOGGED] = {"rows": _rows(trainer), "row": _next_row(trainer) if is_at_batch_end else None}
        validated: Any = epoch_loop.val_loop.batch_progress.current
        if trainer.validating and validated.completed < validated.processed:
            _set_pending(loops["epoch_loop.val_loop.batch_progress"], validated.completed)
        if not is_at_batch_end:
            return
        progress = loops["epoch_loop.batch_progress"]
        fetcher: Any = trainer.fit_loop._data_fetcher
        validates = epoch_loop._should_check_val_fx(fetcher)
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
        """Cut off the rows that come again; count in micro-batches of now; know this folder's checkpoints."""
        if trainer.state.fn != "fit":
            return
        if (position := saved_position(checkpoint)) is not None:
            compare_split(position, trainer, checkpoint["loops"]["fit_loop"], self.batch)
        states = checkpoint.get("callbacks", {})
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and (state := states.get(callback.state_key)):
                # the first rank keeps the files; other nodes may not see them yet
                here = relocated(state, str(callback.dirpath), callback.mode)
                states[callback.state_key] = trainer.strategy.broadcast(here)
        if (logged := checkpoint.get(LOGGED)) is not None:
            self._row = logged["row"]
            if self.cuts:
                _cut(trainer, logged["rows"])

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run that begins has no rows: those that there are were left by one that was killed before it saved."""
        if self.cuts and not trainer.ckpt_path:
            _cut(trainer, 0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the row of the step at whose end the checkpoint was saved; delete what Lightning leaves behind."""
        if trainer.is_global_zero and trainer.ckpt_path:
            remove_older_requeued(Path(trainer.default_root_dir), Path(trainer.ckpt_path))
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


def saved_position(checkpoint: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Of the training batches, see `GlobalBatchSampler.state_dict`; None where a checkpoint has none."""
    loaders = checkpoint["loops"]["fit_loop"].get("state_dict", {}).get("combined_loader")
    return loaders[0] if loaders and "accumulate" in loaders[0] else None


def compare_split(
    saved: Mapping[str, Any], trainer: pl.Trainer, loops: MutableMapping[str, Any], batch: GlobalBatch | None = None
) -> None:
    """Say that a run goes on with another global batch or split of it, and count in micro-batches of the new one.

    Args:
        saved: the state of the sampler, see `GlobalBatchSampler.state_dict`.
        trainer: which goes on.
        loops: Lightning's counters, which are changed.
        batch: of the run that goes on; None: that of the checkpoint.
    """
    accumulate = trainer.accumulate_grad_batches
    is_same = (saved["world_size"], saved["accumulate"]) == (trainer.world_size, accumulate)
    for counts in () if is_same else loops["epoch_loop.batch_progress"].values():
        if isinstance(counts, dict):
            done, open_ones = counts["processed"], counts["processed"] - counts["completed"]
            batches = done // saved["accumulate"] * accumulate
            counts.update(ready=batches, started=batches, processed=batches, completed=max(batches - open_ones, 0))
    before = GlobalBatch.of(saved)
    if before is not None and batch is not None and before.size != batch.size:
        log.warning(
            "the checkpoint is of a global batch of %s, and the run goes on with one of %s: other utterances in a "
            "step, other steps in an epoch, and the learning rate of the config; %s keeps it",
            before,
            batch,
            before.kept_by(batch),
        )
    elif not is_same:
        is_known = before is not None and batch is not None
        log.warning(
            "the checkpoint is of %d ranks and %d accumulated micro-batches, and the run goes on with %d and %d: %s "
            "its utterances and the learning rate, but not their order in it; the result is not bit for bit that of "
            "the run that was interrupted",
            saved["world_size"],
            saved["accumulate"],
            trainer.world_size,
            accumulate,
            "the global batch is the same, and so are" if is_known else "if the global batch is the same, so are",
        )


def remove_older_requeued(run_dir: Path, path: Path) -> None:
    """Delete the checkpoints that were written at SLURM's signals, except the newest, which Lightning looks for.

    Args:
        run_dir: the run folder.
        path: of the whole checkpoint that the run goes on from, which stays too.
    """
    written = sorted(run_dir.glob("hpc_ckpt_*.ckpt"), key=lambda path: (len(path.name), path.name))
    for older in written[:-1]:
        if older.resolve() != path.resolve():
            older.unlink(missing_ok=True)


def relocated(state: Mapping[str, Any], folder: str, mode: str) -> dict[str, Any]:
    """What a ModelCheckpoint knows of the files that it has kept, where the folder that they were kept in has moved.

    Args:
        state: of the callback.
        folder: in which it keeps them now.
        mode: ``"min"`` or ``"max"``: which of the scores are better.

    Returns:
        The state with the files of the same names that are there; without those that are not.
    """
    scores = state.get("best_k_models") or {}
    paths = {state.get(name) or "" for name in _KEPT} | scores.keys()
    here = {path: os.path.join(folder, Path(path).name) for path in paths if path}
    here = {path: name for path, name in here.items() if os.path.isfile(name)}
    found = {here[path]: score for path, score in scores.items() if path in here}
    moved = {**state, "dirpath": folder, "best_k_models": found}
    moved |= {name: here.get(state.get(name) or "", "") for name in _KEPT}
    if found and len(found) < len(scores):
        best, worst = (min, max) if mode == "min" else (max, min)
        chosen = best(found, key=found.__getitem__), worst(found, key=found.__getitem__)
        moved |= zip(_KEPT, chosen, strict=False)
        moved["best_model_score"], moved["kth_value"] = (found[moved[name]] for name in _KEPT[:2])
    elif not moved["best_model_path"] and os.path.isfile(state.get("best_model_path") or ""):
        moved["best_model_path"] = state["best_model_path"]  # of another folder: the best until there is one here
    return moved


def _set_pending(progress: MutableMapping[str, Any], begun: int = 0) -> None:
    """Have a validation begin, or begin again of which some batches are done."""
    earlier = progress["total"]["completed"] - begun  # of other validations in the same epoch
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
