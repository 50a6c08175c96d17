import lightning.pytorch as pl
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_novograd import OptimMixin

OPTIM = OmegaConf.create("""
name: novograd            # or adamw, sgd, ...: any torch.optim class, or your own
lr: 0.02
weight_decay: 0.001
no_decay: [bias]          # no weight decay for these
sched:
  name: CosineAnnealing   # NeMo's schedules, and every torch scheduler
  warmup_ratio: 0.1       # of the run, whose length the trainer knows
""")


class Net(OptimMixin, pl.LightningModule):
    def __init__(self, optim):
        super().__init__()
        self.optim_config = optim  # checked here: a misspelt key is an error that names the nearest match
        self.layers = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])


pl.seed_everything(1)
radius, labels = torch.rand(1000), torch.arange(1000) % 2  # two spirals
angle = 9 * radius + torch.pi * labels
points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
loader = DataLoader(TensorDataset(points, labels), batch_size=50, shuffle=True)
net = Net(OPTIM)
pl.Trainer(max_epochs=30, accelerator="cpu", logger=False, enable_checkpointing=False).fit(net, loader)
print(f"{(net.layers(points).argmax(1) == labels).float().mean():.1%} of the points are classified correctly")
