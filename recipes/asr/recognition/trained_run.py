"""A run of ``train.py`` afterwards: its settings, its checkpoints, and the model in one of them."""

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lightning_novograd.config.data import load_yaml
from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.data.config import DataConfig
from lightning_novograd.recipes.asr.recognition.recognizer import Recognizer
from lightning_novograd.recipes.asr.training.settings import RunSettings
from lightning_novograd.recipes.asr.weights.checkpoint import load_model, read_checkpoint


def make_parser(prog: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments of every command that works with a trained model.

    Args:
        prog: the command's name.
        doc: its module's docstring, for ``--help``.
    """
    summary, _, details = (doc or "").replace("``", "").partition("\n")
    parser = argparse.ArgumentParser(prog=prog, description=summary, epilog=details)
    parser.add_argument("run", metavar="RUN", type=Path, help="the run folder of train.py (its hydra.run.dir)")
    parser.add_argument(
        "--checkpoint",
        metavar="best|last|PATH",
        help="weights of the best epoch by dev WER, of the last one, or in a checkpoint file; default: those that "
        "results.json was measured with (checkpoint.test of the run)",
    )
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: auto, a GPU if there is one"
    )
    return parser


@dataclass(frozen=True)
class TrainedRun:
    """A run folder of ``train.py``.

    Args:
        folder: where it is; it may have been moved.
        settings: the composed config.
        data: its ``data`` block.
    """

    folder: Path
    settings: RunSettings
    data: DataConfig

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the composed config.

        Raises:
            DataError: the folder is none of a run.
            ConfigError: the config in it is not valid, here and now: it may name environment variables.
        """
        config = folder / ".hydra" / "config.yaml"
        if not os.path.isdir(folder):
            raise DataError(f"run folder {folder} does not exist")
        if not os.path.isfile(config):
            raise DataError(f"{folder} is no run folder of train.py: it has no .hydra/config.yaml")
        try:
            document = load_yaml(config)
        except ConfigError as error:
            raise DataError(str(error)) from None
        settings = RunSettings.read(document, "")
        return cls(folder, settings, DataConfig.from_mapping(settings.data))

    def checkpoint(self, which: str | None = None) -> Path:
        """The file of a checkpoint.

        Args:
            which: ``"best"``, ``"last"`` or a path; None for the one that results.json was measured with.

        Raises:
            DataError: the run has not kept it.
        """
        which = which or self.settings.checkpoint.test
        if which not in ("best", "last"):
            try:
                return Path(which).expanduser()
            except RuntimeError:  # pathlib's, for ~name
                raise DataError(f"checkpoint {which} does not exist: there is no such user") from None
        folder = self.folder / "checkpoints"
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

    def recognizer(self, checkpoint: Path, device: str = "cpu") -> Recognizer:
        """The model in a checkpoint, computing in the run's precision.

        Raises:
            DataError: the file is missing, no checkpoint, or one of another program.
            ConfigError: there is no such device on this machine.
        """
        return Recognizer(load_model(checkpoint), device, self.settings.trainer.get("precision"))


def shown(name: object) -> str:
    """The name of a file as it can be printed: bytes that are not UTF-8 are escaped."""
    return str(name).encode("utf-8", "backslashreplace").decode()


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
