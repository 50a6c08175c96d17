"""What a run shows of itself (examples per second, curves), its random numbers, and its guard against NaN."""

from lightning_novograd.recipes.common.callbacks.curves import Curves
from lightning_novograd.recipes.common.callbacks.nonfinite import DivergenceError, NonFiniteGuard
from lightning_novograd.recipes.common.callbacks.progress import ProgressLog
from lightning_novograd.recipes.common.callbacks.rate import Rate
from lightning_novograd.recipes.common.callbacks.seed import BatchSeed

__all__ = ["BatchSeed", "Curves", "DivergenceError", "NonFiniteGuard", "ProgressLog", "Rate"]
