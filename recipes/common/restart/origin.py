"""Whether all ranks go on from the same checkpoint."""

from pathlib import Path

import lightning.pytorch as pl

from lightning_novograd.errors import DataError


class SameOrigin(pl.Callback):
    """Has no rank train on from another checkpoint than the first one does.

    Each rank looks for what a run goes on from by itself. A disk that all of them share may show a new file to one
    machine a minute before it does to another (NFS); weights would then be the first rank's, by DDP, and optimizer,
    schedule and examples each rank's own.

    Args:
        path: of the checkpoint; None: the run begins.
        step: optimizer steps behind it.
    """

    def __init__(self, path: Path | None, step: int = 0) -> None:
        self.path, self.step = path, step

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compare with the first rank, once the ranks know each other and before any of them trains.

        Raises:
            DataError: this rank would go on from another checkpoint.
        """
        if stage != "fit" or trainer.world_size == 1:
            return
        own = (None if self.path is None else self.path.name, self.step)
        first_one = trainer.strategy.broadcast(own)
        if first_one != own:
            ours, first = _shown(*own), _shown(*first_one)
            problem = f"rank 0 {first}, and rank {trainer.global_rank} {ours}: it does not see the same files"
            raise DataError(f"{problem}; the run folder has to be on a disk that all ranks share. Start again if it is")


def _shown(name: str | None, step: int) -> str:
    return "begins anew" if name is None else f"goes on from {name} (optimizer step {step})"
