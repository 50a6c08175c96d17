"""What a run shows of itself (utterances per second, curves), and its random numbers."""

from lightning_novograd.recipes.asr.training.callbacks.curves import CurveRecorder
from lightning_novograd.recipes.asr.training.callbacks.rate import UtteranceRate
from lightning_novograd.recipes.asr.training.callbacks.seed import BatchSeed

__all__ = ["BatchSeed", "CurveRecorder", "UtteranceRate"]
