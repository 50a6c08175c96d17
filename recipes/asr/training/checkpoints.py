"""Which checkpoints a run keeps, and how they come to be whole files."""

import contextlib
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.training.folder import PARTIAL
from lightning_novograd.recipes.asr.training.settings import RunSettings


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
            partial.unlink(missing_ok=True)
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


def build_checkpoints(settings: RunSettings, run_dir: Path) -> list[ModelCheckpoint]:
    """Top-k by dev WER, where there is one, and the last epoch's; if wanted, those to average, the newest in an epoch.

    No name has a ``=``, which Hydra would not take in ``resume_from=``.
    """
    folder = run_dir / "checkpoints"
    # not save_last=True, which copies the newest of the top k
    last = ModelCheckpoint(dirpath=folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    kept = [last]
    if settings.validates:
        by_epoch = ModelCheckpoint(
            dirpath=folder,
            filename="epoch{epoch:03d}-dev_wer{dev_wer:.4f}",
            auto_insert_metric_name=False,
            monitor="dev_wer",
            mode="min",
            save_top_k=settings.checkpoint.save_top_k,
        )
        kept = [by_epoch, last]  # in this order: the best one's path travels in the last
    if settings.checkpoint.average is not None and settings.checkpoint.test == "last":
        recent = ModelCheckpoint(
            dirpath=folder,
            filename="recent-{epoch:03d}",
            auto_insert_metric_name=False,
            monitor="epoch",
            mode="max",
            save_top_k=settings.checkpoint.average,
            save_on_train_epoch_end=True,
        )
        kept.append(recent)
    if settings.checkpoint.every_n_steps is not None:
        by_step = ModelCheckpoint(
            dirpath=folder,
            filename="step{step:07d}",
            auto_insert_metric_name=False,
            every_n_train_steps=settings.checkpoint.every_n_steps,
            save_top_k=1,
        )
        kept.append(by_step)
    return kept
