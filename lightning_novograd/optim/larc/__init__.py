"""LARC: layer-wise adaptive rate control around any optimizer."""

from lightning_novograd.optim.larc.optimizer import LARC
from lightning_novograd.optim.larc.options import larc_arguments_from_openseq2seq

__all__ = ["LARC", "larc_arguments_from_openseq2seq"]
