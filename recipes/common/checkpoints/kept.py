"""Which checkpoints a run keeps, and how they come to be whole files."""

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.common.data.loader import lost_worker
from lightning_novograd.recipes.common.folder import PARTIAL
from lightning_novograd.recipes.common.settings.run import CommonSettings


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint under another name beside its own, and renames it once it is on the disk.

    Whoever reads the file, and whenever the process is killed, it is the old checkpoint or the new one. The rename is
    within one folder, so that it is one step on every file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a local file; whatever else fsspec knows goes Lightning's way.

        Raises:
            DataError: it cannot be written.
        """
        if "://" in str(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        path = Path(path)
        partial = path.with_name(PARTIAL.format(path.name))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            _sync_folder(path.parent)
        except (OSError, RuntimeError) as error:  # RuntimeError: torch's writer on a full disk
            with contextlib.suppress(OSError):  # nor can anything be deleted in a folder that became read-only
                partial.unlink(missing_ok=True)
            if lost_worker(error) is not None:  # torch's handler of SIGCHLD raises wherever this process is
                raise
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise DataError(f"checkpoint {path} cannot be written: {reason}") from error


def _sync_folder(folder: Path) -> None:
    """Have the disk know the new name too, where the system can be asked for it."""
    with contextlib.suppress(OSError):  # Windows opens no folder, and some file systems sync none
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class StepCheckpoint(ModelCheckpoint):
    """Keeps the newest checkpoint inside an epoch, between two optimizer steps.

    Args:
        folder: for ``stepNNNNNNN.ckpt``.
        every_n_steps: optimizer steps between two; None: only those that are asked for (:meth:`save_now`).
    """

    def __init__(self, folder: Path, every_n_steps: int | None) -> None:
        super().__init__(
            dirpath=folder,
            filename="step{step:07d}",
            auto_insert_metric_name=False,
            every_n_train_steps=every_n_steps or 0,
            save_top_k=1,
            enable_version_counter=False,
        )

    def state_dict(self) -> dict[str, Any]:
        """Nothing: what is kept, the folder says."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run that goes on has saved its first step: again, it would be in the middle of the next one's window."""
        super().on_train_start(trainer, pl_module)
        self._last_global_step_saved = trainer.global_step

    def save_now(self, trainer: pl.Trainer) -> str:
        """Save between two optimizer steps, on all ranks together; the path."""
        candidates = self._monitor_candidates(trainer)
        path = self.format_checkpoint_name(candidates)
        if self._last_checkpoint_saved != path:
            self._save_checkpoint(trainer, path)
        return path

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        if trainer.is_global_zero:
            self.remove_others(Path(filepath).name)  # now that this one is on the disk

    def remove_others(self, name: str | None) -> None:
        """Delete all but the one of this name, also those that a killed run has left."""
        assert self.dirpath is not None
        for path in Path(self.dirpath).glob("step*.ckpt"):
            if path.name != name and _STEP.fullmatch(path.name):
                path.unlink(missing_ok=True)


_STEP = re.compile(r"step\d{7,}(-v\d+)?\.ckpt")


def build_checkpoints(settings: CommonSettings, run_dir: Path, metric: str) -> list[ModelCheckpoint]:
    """Top-k by the dev result, where there is one, and the last epoch's; if wanted, those to average, one in an epoch.

    No name has a ``=``, which Hydra would not take in ``resume_from=``. A run that was killed goes on from the last one
    and writes those of the same epoch again, so no name gets a ``-v1``.

    Args:
        settings: of the run.
        run_dir: its folder.
        metric: of the dev set, the smaller the better.
    """
    folder = run_dir / "checkpoints"
    # not save_last=True, which copies the newest of the top k
    last = ModelCheckpoint(dirpath=folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    kept: list[ModelCheckpoint] = [last]
    if settings.validates:
        by_epoch = ModelCheckpoint(
            dirpath=folder,
            filename=f"epoch{{epoch:03d}}-{metric}{{{metric}:.4f}}",
            auto_insert_metric_name=False,
            monitor=metric,
            mode="min",
            save_top_k=settings.checkpoint.save_top_k,
            enable_version_counter=False,
        )
        kept = [by_epoch, last]
    if settings.checkpoint.average is not None and settings.checkpoint.test == "last":
        recent = ModelCheckpoint(
            dirpath=folder,
            filename="recent-{epoch:03d}",
            auto_insert_metric_name=False,
            monitor="epoch",
            mode="max",
            save_top_k=settings.checkpoint.average,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        kept.append(recent)
    if settings.checkpoint.every_n_steps is not None:
        kept.append(StepCheckpoint(folder, settings.checkpoint.every_n_steps))
    return kept


def last_behind(callbacks: Sequence[pl.Callback]) -> list[pl.Callback]:
    """The same, with the checkpoint of the last epoch behind the others: where it is, those of its epoch are.

    What the others have kept travels in it.
    """
    return sorted(callbacks, key=lambda callback: isinstance(callback, ModelCheckpoint) and callback.filename == "last")
