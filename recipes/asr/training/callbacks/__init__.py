"""What a run shows of itself (utterances per second, curves), its random numbers, and its guard against NaN."""

from lightning_novograd.recipes.asr.training.callbacks.curves import CurveRecorder
from lightning_novograd.recipes.asr.training.callbacks.nonfinite import DivergenceError, NonFiniteGuard
from lightning_novograd.recipes.asr.training.callbacks.progress import ProgressLog
from lightning_novograd.recipes.asr.training.callbacks.rate import UtteranceRate
from lightning_novograd.recipes.asr.training.callbacks.seed import BatchSeed

__all__ = ["BatchSeed", "CurveRecorder", "DivergenceError", "NonFiniteGuard", "ProgressLog", "UtteranceRate"]
