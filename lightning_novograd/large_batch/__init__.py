"""What a large global batch needs: an exact split, a learning rate that goes with it, and a reason for its size."""

from lightning_novograd.large_batch.noise_scale import GradientNoise, RunningNoise, gradient_noise
from lightning_novograd.large_batch.plan import BatchPlan, scale_lr, solve_batch_plan

__all__ = ["BatchPlan", "GradientNoise", "RunningNoise", "gradient_noise", "scale_lr", "solve_batch_plan"]
