"""The checkpoints in a run folder of ``train.py``."""

import os
from collections.abc import Mapping
from pathlib import Path

from lightning_novograd.config.data import load_yaml
from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.weights.checkpoint import read_checkpoint

AVERAGE = "average.ckpt"


def config_of(run: Path) -> Path:
    """The composed config of a run.

    Raises:
        DataError: the folder is none of a run.
    """
    config = run / ".hydra" / "config.yaml"
    if not os.path.isdir(run):
        raise DataError(f"run folder {run} does not exist")
    if not os.path.isfile(config):
        raise DataError(f"{run} is no run folder of train.py: it has no .hydra/config.yaml")
    return config


def tested(run: Path) -> str:
    """Whether results.json was measured with the ``"best"`` epoch's weights or the ``"last"`` one's.

    Raises:
        DataError: the folder is none of a run, or its config is broken.
    """
    try:
        document = load_yaml(config_of(run))
    except ConfigError as error:
        raise DataError(str(error)) from None
    block = document.get("checkpoint") if isinstance(document, Mapping) else None
    return "best" if isinstance(block, Mapping) and block.get("test") == "best" else "last"


def find_checkpoint(run: Path, which: str) -> Path:
    """The file of a checkpoint.

    Args:
        run: the run folder; it may have been moved.
        which: ``"best"`` (by dev WER) or ``"last"``.

    Raises:
        DataError: the run has not kept it.
    """
    folder = run / "checkpoints"
    # a second run into the same folder leaves the first one's and writes last-v1.ckpt, last-v2.ckpt, ...
    last = max(folder.glob("last*.ckpt"), key=lambda path: (len(path.name), path.name), default=None)
    if last is None:
        others = sorted(path.name for path in folder.glob("*.ckpt"))
        hint = f"; give the path of another one with --checkpoint: {', '.join(others)}" if others else ""
        raise DataError(f"there is no last.ckpt in {folder}{hint}")
    if which == "last":
        return last
    name = _best_by_dev_wer(last)
    best = None if name is None else folder / name
    if best is None or not os.path.isfile(best):
        missing = f"{best} is gone" if best else "the run kept none (checkpoint.save_top_k=0)"
        raise DataError(f"there is no best checkpoint in {folder}: {missing}")
    return best


def measured_checkpoint(run: Path, test: str) -> Path:
    """The file of the weights that results.json was measured with.

    Args:
        run: the run folder.
        test: ``checkpoint.test`` of the run, ``"best"`` or ``"last"``; an average goes before both.

    Raises:
        DataError: the run has not kept it.
    """
    average = run / "checkpoints" / AVERAGE
    return average if os.path.isfile(average) else find_checkpoint(run, test)


def _best_by_dev_wer(last: Path) -> str | None:
    """The file name of the best checkpoint, which the last one knows; None if none was kept."""
    states = read_checkpoint(last, map_location="meta").get("callbacks", {})
    if not isinstance(states, Mapping):
        found = type(states).__name__
        raise DataError(f"{last} is no checkpoint of train.py: callbacks must be a mapping, not {found}")
    for state in states.values():
        if not isinstance(state, Mapping) or state.get("monitor") != "dev_wer":
            continue
        path = state.get("best_model_path")
        if not isinstance(path, str):
            raise DataError(f"{last} is no checkpoint of train.py: best_model_path must be a text, not {path!r}")
        if path:
            return Path(path).name
    return None
