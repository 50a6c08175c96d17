"""What a large global batch needs: an exact split, and a learning rate that goes with it."""

from lightning_novograd.large_batch.plan import BatchPlan, scale_lr, solve_batch_plan

__all__ = ["BatchPlan", "scale_lr", "solve_batch_plan"]
