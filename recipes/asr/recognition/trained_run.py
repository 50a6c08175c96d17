"""A run of ``train.py`` afterwards: its settings, its checkpoints, and the model in one of them."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lightning_novograd.config.data import load_yaml
from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.data.config import AugmentConfig, DataConfig, LoadingConfig
from lightning_novograd.recipes.asr.recognition.recognizer import Recognizer
from lightning_novograd.recipes.asr.recognition.segments import LONGEST, SHORTEST
from lightning_novograd.recipes.asr.training.settings import RunSettings
from lightning_novograd.recipes.asr.weights.checkpoint import load_model as load_model  # was here before weights/
from lightning_novograd.recipes.asr.weights.checkpoint import longest_utterance
from lightning_novograd.recipes.asr.weights.run_folder import config_of, measured_checkpoint
from lightning_novograd.recipes.asr.weights.source import choose_checkpoint, is_model_file, load_average, load_file
from lightning_novograd.recipes.common.section import Section


@dataclass(frozen=True)
class TrainedRun:
    """A run folder of ``train.py``, or one file with a model.

    Args:
        folder: where it is; it may have been moved.
        settings: the composed config; None for a file, which has none.
        data: its ``data`` block; for a file the defaults, and no corpus (no `name`).
    """

    folder: Path
    settings: RunSettings | None
    data: DataConfig

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the composed config.

        Raises:
            DataError: the folder is none of a run.
            ConfigError: the config in it is not valid, here and now: it may name environment variables.
        """
        if is_model_file(folder):
            return cls(folder, None, DataConfig("", Section(), LoadingConfig(), AugmentConfig()))
        try:
            document = load_yaml(config_of(folder))
        except ConfigError as error:
            raise DataError(str(error)) from None
        settings = RunSettings.read(document, "")
        return cls(folder, settings, DataConfig.from_mapping(settings.data))

    def downmixed(self) -> Self:
        """The run as if it had had ``data.downmix=true``."""
        loading = dataclasses.replace(self.data.loading, downmix=True)
        return dataclasses.replace(self, data=dataclasses.replace(self.data, loading=loading))

    def normalized(self, case: str | None = None, unicode: str | None = None) -> Self:
        """The run as if it had had this ``data.normalize``; None leaves its own."""
        given = {name: value for name, value in (("case", case), ("unicode", unicode)) if value is not None}
        texts = dataclasses.replace(self.data.normalize, **given)
        return dataclasses.replace(self, data=dataclasses.replace(self.data, normalize=texts))

    def checkpoint(self, which: str | None = None) -> Path:
        """The file of a checkpoint.

        Args:
            which: ``"best"``, ``"last"`` or a path; None for the one that results.json was measured with.

        Raises:
            DataError: the run has not kept it, or it is no run and has none to choose from.
        """
        if self.settings is None or which is not None:
            return choose_checkpoint(self.folder, which)
        return measured_checkpoint(self.folder, self.settings.checkpoint.test)

    def average(self, count: int, which: str | None = None, device: str = "cpu") -> tuple[Recognizer, list[Path]]:
        """The mean of the weights of several epochs, and the files that it was made of.

        Args:
            count: how many.
            which: ``"best"`` or ``"last"``; None for what results.json was measured with.
            device: as for :meth:`recognizer`.

        Raises:
            ConfigError: `which` is a path.
            DataError: the run has not kept them, or it is no run.
        """
        model, files = load_average(self.folder, which, count)
        return Recognizer(model, device, self.precision), files

    @property
    def precision(self) -> Any:
        """In which the run computed; None for a file, which does not say."""
        return None if self.settings is None else self.settings.trainer.get("precision")

    def segment_seconds(self, checkpoint: Path) -> float:
        """The longest piece, in s, that the model should hear at once: as long as the longest in its training.

        Raises:
            DataError: the file cannot be read.
        """
        longest = None if checkpoint.suffix == ".nemo" else longest_utterance(checkpoint)
        return LONGEST if longest is None else min(max(longest, SHORTEST), LONGEST)

    def recognizer(self, checkpoint: Path, device: str = "cpu") -> Recognizer:
        """The model in a checkpoint or archive, computing in the run's precision.

        Raises:
            DataError: the file is missing, no checkpoint, or one of another program.
            ConfigError: there is no such device on this machine.
        """
        return Recognizer(load_file(checkpoint), device, self.precision)


def shown(name: object) -> str:
    """The name of a file as it can be printed: bytes that are not UTF-8 are escaped."""
    return str(name).encode("utf-8", "backslashreplace").decode()
