"""What a task is measured by, in words."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A number of an evaluation, the smaller the better.

    Args:
        name: in results.json and metrics.csv, behind ``dev_`` and ``test_``.
        label: in lines of the log and in pictures.
        is_fraction: it is one from 0 to 1, and is shown in percent.

    Example:
        >>> Metric("wer", "WER").show(0.125), Metric("bpc", "bits per character", is_fraction=False).show(2.5)
        ('WER 12.50 %', 'bits per character 2.500')
    """

    name: str
    label: str
    is_fraction: bool = True

    def show(self, value: float) -> str:
        """A value with its label."""
        return f"{self.label} {100 * value:.2f} %" if self.is_fraction else f"{self.label} {value:.3f}"
