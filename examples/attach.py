"""A module that is not yours: its own configure_optimizers never runs."""

import lightning.pytorch as pl
from omegaconf import OmegaConf
from spirals import Net

from lightning_novograd import attach_optimizers

cfg = OmegaConf.create("{name: novograd, lr: 0.02, sched: {name: CosineAnnealing, warmup_ratio: 0.1}}")
net = attach_optimizers(Net(), cfg)
pl.Trainer(max_epochs=30, accelerator="cpu", logger=False, enable_checkpointing=False).fit(net)
