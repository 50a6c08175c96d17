"""Several optimizers as one."""

from lightning_novograd.optim.composite.optimizer import Composite, check_parts

__all__ = ["Composite", "check_parts"]
