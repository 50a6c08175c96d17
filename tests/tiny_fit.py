"""The smallest Lightning run: what the tests of the training room fit."""

from typing import Any

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_novograd.training.mixin import OptimMixin

BLOCK = {
    "name": "novograd",
    "lr": 0.05,
    "betas": [0.95, 0.25],
    "sched": {"name": "cosine", "warmup_steps": 2, "min_lr": 0.01},
}
PACKAGES = pytest.mark.parametrize("package", [pl, pytorch_lightning], ids=["lightning.pytorch", "pytorch_lightning"])


class Numbers(Dataset):
    """`size` samples of three features, sample i filled with i."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((3,), float(index))


class Stream(IterableDataset):
    """The same as a stream."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self):
        return iter(Numbers(self.size)[i] for i in range(self.size))


class MeasuredStream(Stream):
    """A stream that knows its length."""

    def __len__(self) -> int:
        return self.size


class Step:
    """Counts optimizer steps and notes the LR that each sees and the batches; for either Lightning package."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
        self.lrs: list[float] = []
        self.seen: list[list[int]] = []

    def training_step(self, batch, batch_idx):
        self.seen.append([int(x) for x in batch[:, 0]])
        loss = self.layer(batch).square().mean()
        self.log("loss", loss)
        return loss

    def on_before_optimizer_step(self, optimizer):
        self.lrs.append(optimizer.param_groups[0]["lr"])


class Net(OptimMixin, Step, pl.LightningModule):
    def __init__(self, optim: Any = None) -> None:
        super().__init__()
        if optim is not None:
            self.optim_config = optim


def loader(size: int = 8, batch_size: int = 2, **kwargs: Any) -> DataLoader:
    return DataLoader(Numbers(size), batch_size=batch_size, **kwargs)


def trainer(package: Any = pl, **kwargs: Any) -> Any:
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return package.Trainer(**{**quiet, **kwargs})


def block(**changes):
    return {**BLOCK, **changes}


def module_of(package, name="Module", mixin=True):
    return type(name, (*((OptimMixin,) if mixin else ()), Step, package.LightningModule), {})()
