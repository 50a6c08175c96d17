"""A run of ``train.py`` afterwards: its settings, its checkpoints, and the model in one of them."""

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from lightning_novograd.config.data import load_yaml
from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.optim.checkpoint.files import load_plain
from lightning_novograd.recipes.asr.data.config import DataConfig
from lightning_novograd.recipes.asr.model.jasper import JasperCTC
from lightning_novograd.recipes.asr.text.decode import greedy
from lightning_novograd.recipes.asr.training.settings import RunSettings

_MODEL_PREFIX = "model."  # of the acoustic model in CTCModule's state dict

# what the Trainer's precisions mean; all others are float32. (Fabric would round the waveforms to half precision too.)
_AUTOCAST = {"bf16-mixed": torch.bfloat16, "bf16": torch.bfloat16, "16-mixed": torch.float16, "16": torch.float16}
_DTYPES = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64, "64": torch.float64}


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


class Recognizer:
    """Waveforms to texts: a trained model in eval mode, and greedy decoding.

    Args:
        model: the acoustic model.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        precision: as the Trainer has it; None for float32.

    Raises:
        ConfigError: there is no such device on this machine.
    """

    def __init__(self, model: JasperCTC, device: str = "cpu", precision: Any = None) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("--device", "is cuda, but this machine has no CUDA device")
        self.alphabet = model.alphabet
        self.sample_rate = model.config.preprocessor.sample_rate
        self._dtype = _DTYPES.get(str(precision), torch.float32)
        self._model = model.eval().to(device, self._dtype)
        autocast = _AUTOCAST.get(str(precision))
        if device == "cpu" and autocast == torch.float16:
            autocast = torch.bfloat16  # as the Trainer does
        self._device = device
        self._autocast = torch.autocast(device, autocast, enabled=autocast is not None)

    @torch.inference_mode()
    def __call__(self, wave_BS: Tensor, wave_lens_B: Tensor) -> list[str]:
        """One text per waveform.

        Args:
            wave_BS: waveforms ``(batch, samples)`` at `sample_rate`, within [-1, 1].
            wave_lens_B: valid samples of each.
        """
        with self._autocast:
            log_probs_BTV, lens_B = self._model(wave_BS.to(self._device, self._dtype), wave_lens_B.to(self._device))
        return greedy(log_probs_BTV, lens_B, self.alphabet)


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


def read_checkpoint(path: Path, map_location: str = "cpu") -> dict[str, Any]:
    """A Lightning checkpoint, read as data: no code in it ever runs.

    Args:
        path: the file.
        map_location: `"meta"` reads no weights.

    Raises:
        DataError: it is missing or more than plain data.
    """
    if not os.path.exists(path):  # pathlib would raise for a name that is too long
        raise DataError(f"checkpoint {path} does not exist")
    try:
        checkpoint = load_plain(path, map_location=map_location)
    except OSError as error:
        raise DataError(f"checkpoint {path} cannot be read: {error}") from None
    except DataError as error:
        raise DataError(f"{path} {error}") from None
    if not isinstance(checkpoint, dict):
        raise DataError(f"{path} is no checkpoint of train.py: it holds no mapping")
    return checkpoint


def load_model(path: Path) -> JasperCTC:
    """The acoustic model of a checkpoint of ``train.py``, built from the config that travels in it.

    Raises:
        DataError: it cannot be read, or is none of a speech model.
    """
    checkpoint = read_checkpoint(path)
    hyper_parameters, weights = checkpoint.get("hyper_parameters"), checkpoint.get("state_dict")
    if not isinstance(hyper_parameters, dict) or "model" not in hyper_parameters or not isinstance(weights, dict):
        raise DataError(f"{path} is no checkpoint of train.py: it lacks hyper_parameters.model or state_dict")
    model = JasperCTC.from_config(hyper_parameters["model"])
    names = [name for name in weights if isinstance(name, str) and name.startswith(_MODEL_PREFIX)]
    try:
        model.load_state_dict({name.removeprefix(_MODEL_PREFIX): weights[name] for name in names})
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise DataError(f"checkpoint {path} does not fit its own config: {reason[:200]}") from None
    return model


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
