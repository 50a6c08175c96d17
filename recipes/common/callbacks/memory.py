"""How much memory a run takes, and what for."""

import sys
from collections.abc import Mapping

import lightning.pytorch as pl
import torch


def peak_memory_mb() -> int | None:
    """The most main memory that this process has had so far, in MB; None where the system does not say.

    Pages of mapped files count while they are in memory, though other processes share them.
    """
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10))  # bytes there, kB elsewhere


class PeakMemory(pl.Callback):
    """Notes the peak of a run's memory when the program stands, when the data is read, and when training is over.

    Each number includes those before it, as a peak does; what a stage has added is the difference.

    Attributes:
        stages: MB of main memory by stage: ``program`` (imports, model), ``data``, ``training``; and ``gpu``, of its
            tensors at their peak. A stage that the system says nothing about is missing.
    """

    def __init__(self) -> None:
        self.stages: dict[str, int] = {}
        self._note("program")

    def _note(self, stage: str) -> None:
        if (peak := peak_memory_mb()) is not None:
            self.stages[stage] = peak

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The data is read."""
        self._note("data")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The training is over."""
        self._note("training")
        device = trainer.strategy.root_device
        if device.type == "cuda":
            self.stages["gpu"] = round(torch.cuda.max_memory_allocated(device) / (1 << 20))


def describe_peaks(stages: Mapping[str, int]) -> str:
    """The stages of :class:`PeakMemory` in words."""
    words = {"program": "the program", "data": "with its data", "training": "in training", "gpu": "on the GPU"}
    return ", ".join(f"{peak} MB {words[stage]}" for stage, peak in stages.items())
