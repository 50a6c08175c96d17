"""The global batch: how it is spread, how it grows, how large it should be, and what it does to the learning rate."""

from lightning_novograd.large_batch.noise_scale import GradientNoise, RunningNoise, gradient_noise
from lightning_novograd.large_batch.plan import BatchPlan, scale_lr, solve_batch_plan
from lightning_novograd.large_batch.ramp import BatchRamp, solve_batch_ramp

__all__ = [
    "BatchPlan",
    "BatchRamp",
    "GradientNoise",
    "RunningNoise",
    "gradient_noise",
    "scale_lr",
    "solve_batch_plan",
    "solve_batch_ramp",
]
