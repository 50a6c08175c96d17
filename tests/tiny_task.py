"""A task of no difficulty, for the run that tasks share: whether the sum of four numbers is positive."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from lightning_novograd.recipes.common.metric import Metric
from lightning_novograd.recipes.common.section import key
from lightning_novograd.recipes.common.tasks.data import DataSettings
from lightning_novograd.recipes.common.tasks.module import TaskModule
from lightning_novograd.recipes.common.tasks.task import Task


class Points:
    """`size` points; one at `bad` is not finite."""

    def __init__(self, size: int, seed: int, bad: int | None = None) -> None:
        self.points = torch.randn(size, 4, generator=torch.Generator().manual_seed(seed))
        self.signs = (self.points.sum(dim=1) > 0).long()
        if bad is not None:
            self.points[bad, 0] = float("nan")

    def __len__(self) -> int:
        return len(self.signs)

    def take(self, indices, epoch):
        chosen = torch.as_tensor(indices)
        return self.points[chosen], self.signs[chosen]


@dataclass(frozen=True, kw_only=True)
class PointData(DataSettings):
    """The ``data`` block."""

    train_size: int = key(40, low=1)
    bad: int | None = key(None, low=0)
    bad_dev: int | None = key(None, low=0)

    def sets(self, seed):
        return {"train": Points(self.train_size, 1, self.bad), "dev": Points(10, 2, self.bad_dev), "test": Points(9, 3)}


class PointModule(TaskModule):
    """One linear layer."""

    metric = Metric("error", "error")

    def build(self, model):
        return nn.Linear(4, model["classes"])

    def measure(self, outputs, targets):
        losses = F.cross_entropy(outputs, targets, reduction="none")
        return losses, (outputs.argmax(dim=1) != targets).float()


POINTS = Task(data=PointData, module=PointModule, unit="points", loss="cross-entropy")


def config(**blocks) -> dict:
    """What a run is given; blocks that are named are changed key by key."""
    cfg = {
        "model": {"classes": 2},
        "data": {"batch_size": 8},
        "optim": {"name": "novograd", "lr": 0.05, "sched": {"name": "CosineAnnealing", "warmup_ratio": 0.1}},
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 3,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        },
        "logger": {"csv": {}},
        "checkpoint": {},
        "large_batch": {},
        "seed": 1,
    }
    for name, changes in blocks.items():
        cfg[name] = {**cfg.get(name, {}), **changes} if isinstance(changes, dict) else changes
    return cfg
