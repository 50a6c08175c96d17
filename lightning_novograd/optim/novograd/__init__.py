"""NovoGrad: the optimizer, its functional form and the workers that do the arithmetic."""

from lightning_novograd.optim.novograd.functional import novograd
from lightning_novograd.optim.novograd.optimizer import NovoGrad

__all__ = ["NovoGrad", "novograd"]
