"""A trained model by its path: the folder of a run, a checkpoint or a ``.nemo`` archive."""

import os
from pathlib import Path

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.model.jasper import JasperCTC
from lightning_novograd.recipes.asr.weights.average import average_model
from lightning_novograd.recipes.asr.weights.checkpoint import load_model
from lightning_novograd.recipes.asr.weights.nemo import load_nemo
from lightning_novograd.recipes.asr.weights.run_folder import find_checkpoint, measured_checkpoint, measured_with

FILES = (".ckpt", ".nemo")


def expand(source: str | Path) -> Path:
    """The path with ``~`` expanded.

    Raises:
        DataError: there is no such user.
    """
    try:
        return Path(source).expanduser()
    except RuntimeError:  # pathlib's, for ~name
        raise DataError(f"{source} does not exist: there is no such user") from None


def is_model_file(source: Path) -> bool:
    """Whether this is, or would be, one file with a model, not a run folder."""
    return source.suffix in FILES and not os.path.isdir(source)


def find_model(source: str | Path) -> Path:
    """The file that holds the weights: `source` itself, or in a run folder those that results.json was measured with.

    Raises:
        DataError: there is no such file or folder, or the run has not kept the checkpoint.
    """
    path = expand(source)
    if is_model_file(path) or os.path.isfile(path):
        return path
    if not os.path.exists(path):
        raise DataError(f"{source} does not exist; give a run folder of train.py, a .ckpt or a .nemo file")
    return measured_checkpoint(path, measured_with(path))


def choose_checkpoint(source: str | Path, which: str | None = None) -> Path:
    """The same file, or another checkpoint of the run.

    Args:
        source: as in :func:`find_model`.
        which: ``"best"``, ``"last"`` or a path; None for :func:`find_model`.

    Raises:
        DataError: it is not there, or `source` is one file and has none to choose from.
    """
    if which is None:
        return find_model(source)
    path = expand(source)
    if is_model_file(path):
        raise DataError(f"{source} is one file: there is no checkpoint {which!r} to choose")
    return find_checkpoint(path, which) if which in ("best", "last") else expand(which)


def load_file(path: Path) -> JasperCTC:
    """The model in one file, in eval mode; a checkpoint of a run with ``optim.ema`` has the average.

    Raises:
        DataError: it is missing, no checkpoint of train.py and no ``.nemo`` archive, or holds more than plain data.
        ConfigError: it holds another kind of model.
    """
    return load_nemo(path) if path.suffix == ".nemo" else load_model(path).eval()


def load_average(source: str | Path, which: str | None, count: int) -> tuple[JasperCTC, list[Path]]:
    """The mean of the weights of several epochs of a run, in eval mode, and the files that it was made of.

    Args:
        source: a run folder.
        which: ``"best"`` or ``"last"``; None for what results.json was measured with.
        count: how many epochs.

    Raises:
        ConfigError: `which` is a path.
        DataError: the run has not kept them, or it is no run.
    """
    run = expand(source)
    if is_model_file(run):
        raise DataError(f"{source} is one file: there is nothing to average")
    if which not in (None, "best", "last"):
        raise ConfigError("--average", f"is of the best or the last epochs, not of --checkpoint {which}")
    return average_model(run, which or measured_with(run), count)


def load(source: str | Path) -> JasperCTC:
    """The model of a run, a checkpoint or a ``.nemo`` archive, in eval mode, on the CPU.

    Args:
        source: a run folder of ``train.py``, a ``.ckpt`` file or a ``.nemo`` file.

    Raises:
        DataError: there is none, or it cannot be read; one line that names it.
        ConfigError: it holds another kind of model.
    """
    return load_file(find_model(source))
