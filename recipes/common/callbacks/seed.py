"""The random numbers of a batch."""

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch


class BatchSeed(pl.Callback):
    """Makes the random numbers of a batch (dither, dropout, masks) depend on seed, epoch, batch and rank alone.

    A resumed run so draws what the uninterrupted one would have drawn; checkpoints hold no generator states.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed torch's generators."""
        place = (self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))
