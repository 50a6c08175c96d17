"""The optim block in Lightning: all that knows it, but integrations."""

from lightning_novograd.training.attach import attach_optimizers
from lightning_novograd.training.mixin import OptimMixin
from lightning_novograd.training.packages import check_same_lightning

__all__ = ["OptimMixin", "attach_optimizers", "check_same_lightning"]
