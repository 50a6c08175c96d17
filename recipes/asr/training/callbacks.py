"""The callbacks of every run, told of utterances and of error rates."""

from pathlib import Path
from typing import Any

from lightning_novograd.recipes.common.callbacks import BatchSeed as BatchSeed  # was here before common/
from lightning_novograd.recipes.common.callbacks import Curves, Rate, curves, nonfinite, progress
from lightning_novograd.recipes.common.metric import Metric

WER, CER = Metric("wer", "WER"), Metric("cer", "CER")


class UtteranceRate(Rate):
    """Training utterances per second, logged as ``utt_per_s``."""

    def __init__(self) -> None:
        super().__init__("utt_per_s", size=lambda batch: len(batch.texts))

    @property
    def utterances(self) -> int:
        """Heard so far."""
        return self.count


class CurveRecorder(Curves):
    """Curves of CTC loss, WER and learning rate.

    Args:
        path: the picture to write.
        every_n_steps: optimizer steps between two points of loss and learning rate.
    """

    def __init__(self, path: Path, every_n_steps: int = 10) -> None:
        super().__init__(path, WER, every_n_steps)

    def draw(self) -> None:
        """Write the picture."""
        draw_curves(self.points, self.path)


def draw_curves(points: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Draw them, see :func:`curves.draw_curves`."""
    curves.draw_curves(points, path, WER, "CTC loss")


class NonFiniteGuard(nonfinite.NonFiniteGuard):
    """The guard against NaN, which looks at waveforms.

    Args:
        action: ``"raise"`` or ``"skip"``.
        max_consecutive: bad steps in a row that are skipped.
    """

    def __init__(self, action: str = "raise", max_consecutive: int = 10) -> None:
        super().__init__(action, max_consecutive, samples="wave_BS")


class ProgressLog(progress.ProgressLog):
    """Lines of progress, of utterances, WER and CER.

    Args:
        rate: counts the utterances.
        interval: s between two lines.
        extra: attributes of the log records.
    """

    def __init__(self, rate: Rate, interval: float = 30.0, extra: dict[str, Any] | None = None) -> None:
        super().__init__(rate, (WER, CER), "utterances", interval, extra)
