"""A tiny speech model, batches of noise, and a Trainer for them: a fit of a few steps in tenths of a second."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from lightning_novograd.recipes.asr.data.dataset import Batch
from lightning_novograd.recipes.asr.training.module import CTCModule

MODEL = {
    "labels": ["a", "b"],
    "preprocessor": {"dither": 0.0},
    "encoder": {"jasper": [{"filters": 8, "kernel": 11, "stride": 2, "separable": True, "residual": False}]},
}
OPTIM = {"name": "novograd", "lr": 0.01, "sched": {"name": "CosineAnnealing", "max_steps": 100}}


def batch(seed: int, size: int = 2, value: float | None = None) -> Batch:
    """Half a second of noise for each utterance; `value` takes the place of one sample of the second one."""
    wave_BS = 0.1 * torch.randn(size, 8000, generator=torch.Generator().manual_seed(seed))
    if value is not None:
        wave_BS[1, 17] = value
    texts = ["ab"] * size
    targets_BU, lens_B = torch.tensor([[0, 1]] * size), torch.full((size,), 2)
    places = [f"m.json:{seed}{i}" for i in range(size)]
    return Batch(wave_BS, torch.full((size,), 8000), targets_BU, lens_B, texts, places=places)


def module(guard: Any = None, **optim: Any) -> CTCModule:
    """The same weights every time."""
    torch.manual_seed(0)
    made = CTCModule(MODEL, {**OPTIM, **optim}, num_samples=0)
    made.guard = guard
    return made


def trainer(callbacks: Sequence[pl.Callback] = (), **options: Any) -> pl.Trainer:
    """One that shows and writes nothing."""
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    options = {**quiet, "accelerator": "cpu", "devices": 1, "max_epochs": 1, "num_sanity_val_steps": 0, **options}
    return pl.Trainer(callbacks=list(callbacks), **options)


def loader(batches: Sequence[Batch]) -> DataLoader:
    """In this order."""
    return DataLoader(list(batches), batch_size=None)
