"""torch's own optimizers, registered under their names."""

import torch

from lightning_novograd.registry import OPTIMIZERS, Entry

for _name, _cls in vars(torch.optim).items():
    if isinstance(_cls, type) and issubclass(_cls, torch.optim.Optimizer) and _cls is not torch.optim.Optimizer:
        OPTIMIZERS.add(Entry(_name, "optimizer", _cls))
