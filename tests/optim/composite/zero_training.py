"""A fit whose optimizer shares its state among two ranks, saved and gone on with; run by test_zero.py.

usage: zero_training.py KIND OUT
"""

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from ranks import leave
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.utils.data import DataLoader

from lightning_novograd.optim import LARC, Composite

KINDS = {
    "parts": lambda net: Composite([zero(net[0]), zero(net[1])]),
    "beside": lambda net: Composite([zero(net[0]), torch.optim.SGD(net[1].parameters(), lr=0.1, momentum=0.9)]),
    "larc": lambda net: LARC(zero(net)),
    "larc around": lambda net: LARC(Composite([zero(net[0]), zero(net[1])])),
}


def zero(module: nn.Module) -> ZeroRedundancyOptimizer:
    return ZeroRedundancyOptimizer(module.parameters(), optimizer_class=torch.optim.AdamW, lr=0.1)


class Net(pl.LightningModule):
    """Two layers."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.net = kind, nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return KINDS[self.kind](self.net)


def trainer(epochs: int) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=DDPStrategy(process_group_backend="gloo"),
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def main() -> None:
    kind, out = sys.argv[1], Path(sys.argv[2])
    data = DataLoader(torch.arange(32.0).reshape(8, 4) / 32, batch_size=2)
    whole, first, second = Net(kind), Net(kind), Net(kind)
    trainer(2).fit(whole, data)
    run = trainer(1)
    run.fit(first, data)
    run.save_checkpoint(out / "half.ckpt")
    trainer(2).fit(second, data, ckpt_path=out / "half.ckpt", weights_only=True)
    torch.testing.assert_close(second.state_dict(), whole.state_dict(), rtol=0, atol=0)
    leave()


if __name__ == "__main__":
    main()
