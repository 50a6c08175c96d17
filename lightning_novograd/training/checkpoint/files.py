"""What a checkpoint may not do when training goes on from it: have files deleted that are not of this run.

`ModelCheckpoint` takes the paths of the checkpoints that it kept from its state, and deletes them when better ones
come: folders, too, and without a look at where they are if a path has a protocol (`local:///home/me`) or a `..`.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from lightning_novograd.errors import DataError


def refuse_foreign_files(trainer: Any, checkpoint: Mapping[str, Any]) -> None:
    """Raise for a checkpoint whose callbacks would delete what is in no checkpoint folder of the run.

    Args:
        trainer: about to load the checkpoint.
        checkpoint: as it was read.

    Raises:
        DataError: they would; or one would have the best checkpoint read from a web address, which Lightning does as if
            it were trusted.

    """
    states = checkpoint.get("callbacks")
    if trainer.state.fn != "fit" or not isinstance(states, Mapping):
        return
    folders = [callback.dirpath for callback in trainer.checkpoint_callbacks if getattr(callback, "dirpath", None)]
    for key, state in states.items():
        for path in _paths(state, folders):
            if not any(_is_below(path, folder) for folder in folders):
                problem = f"the state of {str(key)[:80]!r} names {str(path)[:200]!r}, which is in no checkpoint folder"
                raise DataError(f"{trainer.ckpt_path}: {problem} of this run; it would be deleted or read")


def _paths(state: Any, folders: list[str]) -> Iterator[Any]:
    """What Lightning may delete for the state of a callback, or read without a check."""
    if not isinstance(state, Mapping):
        return
    if isinstance(best := state.get("best_model_path"), str) and best.startswith("http"):
        yield best
    # a state with another folder is left alone, except for the best path, which is only read
    if "dirpath" in state and state["dirpath"] not in folders:
        return
    kept = state.get("best_k_models")
    yield from kept if isinstance(kept, Mapping) else ()
    for key in ("kth_best_model_path", "last_model_path"):
        if (path := state.get(key)) not in (None, ""):
            yield path


def _is_below(path: Any, folder: str) -> bool:
    if not isinstance(path, str):
        return False
    if "://" in folder:
        inside = path.removeprefix(f"{folder.rstrip('/')}/")
        return inside != path and not {"..", ""} & {*inside.split("/")} and ":" not in inside
    below = os.path.join(os.path.abspath(folder), "")
    return "://" not in path and "::" not in path and os.path.abspath(path).startswith(below)
