"""Optimizers and what they are made of; knows torch only."""

from lightning_novograd.optim.composite import Composite
from lightning_novograd.optim.larc import LARC
from lightning_novograd.optim.novograd import NovoGrad, novograd

__all__ = ["LARC", "Composite", "NovoGrad", "novograd"]
