"""The checkpoints in a run folder of ``train.py``."""

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_novograd.config.data import load_yaml
from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.common.checkpoints.reading import read_checkpoint
from lightning_novograd.recipes.common.way_on import AVERAGE


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


def measured_with(run: Path) -> str:
    """Whether results.json was measured with the ``"best"`` epoch's weights or the ``"last"`` one's.

    Raises:
        DataError: the folder is none of a run, or its config is broken.
    """
    return "best" if _checkpoint_block(run).get("test") == "best" else "last"


def find_checkpoint(run: Path, which: str) -> Path:
    """The file of a checkpoint.

    Args:
        run: the run folder; it may have been moved.
        which: ``"best"`` (by dev WER) or ``"last"``.

    Raises:
        DataError: the run has not kept it.
    """
    folder = run / "checkpoints"
    lasts = _lasts(run)
    if not lasts:
        others = sorted(path.name for path in folder.glob("*.ckpt"))
        hint = f"; give the path of another one with --checkpoint: {', '.join(others)}" if others else ""
        raise DataError(f"there is no last.ckpt in {folder}{hint}")
    last = lasts[-1]
    if which == "last":
        return last
    name = _best_by_dev_wer(last)
    best = None if name is None else folder / name
    if best is None or not os.path.isfile(best):
        missing = f"{best} is gone" if best else "the run kept none (checkpoint.save_top_k=0)"
        raise DataError(f"there is no best checkpoint in {folder}: {missing}")
    return best


def best_checkpoints(run: Path) -> list[Path]:
    """The files of the epochs that were kept by dev WER, the best one first.

    Raises:
        DataError: there is no last.ckpt, or it is of another program.
    """
    last = find_checkpoint(run, "last")
    scores = _by_dev_wer(last, "cpu").get("best_k_models", {})  # tensors
    if not isinstance(scores, Mapping):
        raise DataError(f"{last} is no checkpoint of train.py: best_k_models must be a mapping, not {scores!r}")
    kept = [last.parent / Path(name).name for name in sorted(scores, key=lambda name: float(scores[name]))]
    return [path for path in kept if os.path.isfile(path)]


def last_checkpoints(run: Path) -> list[Path]:
    """The files of the last epochs in a row, the last one first; of each its newest.

    What is further than last.ckpt belongs to a training that went another way; what was saved inside an epoch, by
    ``checkpoint.every_n_steps``, is none.

    Raises:
        DataError: a file is of another program.
    """
    newest: dict[int, tuple[int, Path]] = {}
    lasts = _lasts(run)
    reached = read_checkpoint(lasts[-1], map_location="meta").get("global_step") if lasts else None
    for path in sorted((run / "checkpoints").glob("*.ckpt")):
        if path.name == AVERAGE:
            continue
        checkpoint = read_checkpoint(path, map_location="meta")
        if "averaged" in checkpoint or _is_inside_epoch(checkpoint):
            continue
        epoch, step = checkpoint.get("epoch"), checkpoint.get("global_step")
        if not isinstance(epoch, int) or not isinstance(step, int):
            raise DataError(f"{path} is no checkpoint of train.py: it lacks epoch or global_step")
        if isinstance(reached, int) and step > reached:
            continue
        newest[epoch] = max(newest.get(epoch, (-1, path)), (step, path))
    last = max(newest, default=-1)
    in_a_row = itertools.takewhile(newest.__contains__, itertools.count(last, -1))
    return [newest[epoch][1] for epoch in in_a_row]


def measured_checkpoint(run: Path, test: str) -> Path:
    """The file of the weights that results.json was measured with.

    Args:
        run: the run folder.
        test: ``checkpoint.test`` of the run, ``"best"`` or ``"last"``; an average goes before both.

    Raises:
        DataError: the run has not kept it.
    """
    average = run / "checkpoints" / AVERAGE
    # one that an earlier training left was not measured; a config that does not say is of an older release
    if os.path.isfile(average) and _checkpoint_block(run).get("average", AVERAGE) is not None:
        return average
    return find_checkpoint(run, test)


def _checkpoint_block(run: Path) -> Mapping[str, Any]:
    """The ``checkpoint`` block of a run's config; empty if it has none."""
    try:
        document = load_yaml(config_of(run))
    except ConfigError as error:
        raise DataError(str(error)) from None
    block = document.get("checkpoint") if isinstance(document, Mapping) else None
    return block if isinstance(block, Mapping) else {}


def _lasts(run: Path) -> list[Path]:
    """last.ckpt, and last-v1.ckpt, ... of releases that let a second run into the folder; the newest is the last."""
    return sorted((run / "checkpoints").glob("last*.ckpt"), key=lambda path: (len(path.name), path.name))


def _is_inside_epoch(checkpoint: Mapping[str, Any]) -> bool:
    """Whether batches of the epoch were left; a training that max_steps ended has ended its epoch."""
    try:
        loop = checkpoint["loops"]["fit_loop"]
        count = loop["epoch_progress"]["current"]
        return not loop["epoch_loop.batch_progress"]["is_last_batch"] and count["processed"] < count["ready"]
    except (KeyError, TypeError):  # it does not say
        return False


def _by_dev_wer(last: Path, map_location: str = "meta") -> Mapping[str, Any]:
    """What the last checkpoint knows of those that were kept by dev WER; nothing if none was."""
    states = read_checkpoint(last, map_location).get("callbacks", {})
    if not isinstance(states, Mapping):
        found = type(states).__name__
        raise DataError(f"{last} is no checkpoint of train.py: callbacks must be a mapping, not {found}")
    ours = (state for state in states.values() if isinstance(state, Mapping) and state.get("monitor") == "dev_wer")
    return next((state for state in ours if state.get("best_model_path") != ""), {})


def _best_by_dev_wer(last: Path) -> str | None:
    """The file name of the best checkpoint, which the last one knows; None if none was kept."""
    state = _by_dev_wer(last)
    if not state:
        return None
    path = state.get("best_model_path")
    if not isinstance(path, str):
        raise DataError(f"{last} is no checkpoint of train.py: best_model_path must be a text, not {path!r}")
    return Path(path).name
