"""Several optimizers as one."""

from lightning_novograd.optim.composite.optimizer import Composite

__all__ = ["Composite"]
