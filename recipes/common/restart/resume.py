"""What a run is continued from: whether it can be, said in one line before any work is done."""

import itertools
import logging
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.common.checkpoints.finite import check_finite
from lightning_novograd.recipes.common.checkpoints.reading import UnreadableError, read_checkpoint
from lightning_novograd.recipes.common.folder import process_rank

log = logging.getLogger(__name__)

# what Lightning cannot go on without
_NEEDED = ("pytorch-lightning_version", "state_dict", "loops", "epoch", "global_step", "optimizer_states")


def read_resumed(path: Path) -> dict[str, Any]:
    """A checkpoint that a run can be continued from.

    Args:
        path: of ``resume_from``.

    Raises:
        ConfigError: it is a folder, or a NeMo archive.
        DataError: it is missing, empty, damaged, holds more than plain data, or is no whole checkpoint.
    """
    if path.suffix == ".nemo":
        problem = f"{path} is a NeMo archive, which holds weights and no training to go on with"
        raise ConfigError("resume_from", f"{problem}; init_from={path} begins a new training with its weights")
    if os.path.isdir(path):
        last = next((p for p in (path / "last.ckpt", path / "checkpoints" / "last.ckpt") if p.is_file()), None)
        hint = f"; resume_from={last} is meant" if last else ""
        raise ConfigError("resume_from", f"{path} is a folder, not a checkpoint{hint}")
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        raise DataError(f"checkpoint {path} is empty")
    checkpoint = read_checkpoint(path)
    if missing := [name for name in _NEEDED if name not in checkpoint]:
        raise DataError(f"{path} is no checkpoint to go on from: it lacks {', '.join(missing)}")
    check_whole(path)
    return checkpoint


def check_whole(path: Path) -> None:
    """Compare what torch.save has written with its checksums, which torch.load does not look at.

    Args:
        path: of a checkpoint that torch has read; one without checksums, of an old torch, passes.

    Raises:
        DataError: a part of it is not what was written.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except zipfile.BadZipFile as error:
        raise DataError(f"checkpoint {path} is damaged: {error}") from None
    except OSError as error:
        raise UnreadableError(f"checkpoint {path} cannot be read: {error}") from None
    if damaged is not None:
        raise DataError(f"checkpoint {path} is damaged: the checksum of {damaged} does not fit")


def check_resumed(path: Path, checkpoint: Mapping[str, Any], module: pl.LightningModule) -> None:
    """Refuse a checkpoint of another model.

    Args:
        path: of the checkpoint.
        checkpoint: as :func:`read_resumed` gives it.
        module: which is to go on.

    Raises:
        DataError: its weights are not those of `module`, or are not finite.
    """
    saved = checkpoint["state_dict"]
    if not isinstance(saved, Mapping):
        raise DataError(f"{path} is no checkpoint of train.py: state_dict is no mapping")
    ours = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    theirs = {name: tuple(getattr(value, "shape", ())) for name, value in saved.items()}
    if ours != theirs:
        name = next(name for name in (*ours, *theirs) if ours.get(name) != theirs.get(name))
        differ = sum(ours.get(name) != theirs.get(name) for name in {**ours, **theirs})
        more = f", and {differ - 1} more differ" if differ > 1 else ""
        problem = f"{name} is {_shape(theirs.get(name))} there and {_shape(ours.get(name))} by the config{more}"
        raise DataError(f"{path} is of another model: {problem}")
    check_finite(path, saved)


def is_finished(checkpoint: Mapping[str, Any], trainer: Mapping[str, Any]) -> str | None:
    """How long a run has trained that has nothing left to train: ``"16 epochs"``; None while there is.

    Args:
        checkpoint: of the run.
        trainer: the ``trainer`` block.

    Raises:
        ConfigError: it has trained for more epochs than the block allows.
    """
    step, most_steps = checkpoint["global_step"], trainer.get("max_steps", -1)
    if isinstance(most_steps, int) and 0 <= most_steps <= step:
        return f"{step} optimizer steps (trainer.max_steps={most_steps})"
    try:
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    except (KeyError, TypeError):
        return None
    most = trainer.get("max_epochs")
    if isinstance(most, int) and 0 <= most < epochs:
        raise ConfigError("trainer.max_epochs", f"is {most}, but the checkpoint of resume_from has {epochs} behind it")
    if most == epochs:
        return f"{epochs} epochs (trainer.max_epochs={most})"
    return None


def set_later_checkpoints_aside(run_dir: Path, step: int) -> None:
    """Move what a run has kept beyond `step` to a folder of its own: a run that goes back there takes another way.

    Args:
        run_dir: the run folder.
        step: optimizer steps of the checkpoint that the run goes on from.
    """
    if process_rank():
        return
    later = {}
    for path in (*sorted(run_dir.glob("checkpoints/*.ckpt")), *sorted(run_dir.glob("hpc_ckpt_*.ckpt"))):
        try:
            steps = read_checkpoint(path, map_location="meta").get("global_step")
        except DataError:  # damaged: nothing that anyone would take for later weights
            continue
        if isinstance(steps, int) and steps > step:
            later[path] = steps
    if not later:
        return
    name = f"checkpoints_step{max(later.values()):07d}"
    names = itertools.chain([name], (f"{name}-v{version}" for version in itertools.count(1)))
    aside = next(folder for name in names if not (folder := run_dir / name).exists())
    aside.mkdir()
    for path in later:
        path.replace(aside / path.name)
    log.warning("the run goes back to step %d; its %d later checkpoints are now in %s", step, len(later), aside)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else "a number" if not shape else " x ".join(map(str, shape))
