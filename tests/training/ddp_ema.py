"""A fit that averages the weights and accumulates as its block says, alone or as a rank; run by test_ema.py.

usage: ddp_ema.py OUT WORLD_SIZE [CHECKPOINT]
"""

import os
import sys
from pathlib import Path

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from ranks import leave
from tiny_fit import Net, Numbers, loader, trainer
from torch.utils.data import DistributedSampler


class Validated(Net):
    """Notes the weights of each validation."""

    def __init__(self, optim):
        super().__init__(optim)
        self.validated = []

    def validation_step(self, batch, batch_idx):
        self.validated.append(self.layer.weight.detach().clone())


def main() -> None:
    out, world_size, *ckpt = sys.argv[1:]
    devices, rank = int(world_size), int(os.environ.get("RANK", "0"))
    torch.manual_seed(rank)  # DDP hands out the weights of rank 0: an average of others would show
    large_batch = {"global_batch_size": [[0, 4], [4, 8]], "per_device_batch_size": 4 // devices}
    sched = {"name": "WarmupAnnealing", "warmup_steps": 2}
    optim = {"name": "novograd", "lr": 0.01, "ema": 0.5, "large_batch": large_batch, "sched": sched}
    net = Validated(optim)
    saved = ModelCheckpoint(f"{out}-saved", "{epoch}", save_top_k=-1)
    run = trainer(
        callbacks=[saved],
        enable_checkpointing=True,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=2,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # Lightning's shuffles
    )
    sampler = DistributedSampler(Numbers(24), devices, rank, shuffle=False)
    batches = loader(24, 4 // devices, sampler=sampler)
    run.fit(net, batches, loader(2), ckpt_path=ckpt[0] if ckpt else None, weights_only=True)
    state = {"average": net.layer.state_dict(), "validated": net.validated, "steps": run.global_step, "lrs": net.lrs}
    torch.save(state, Path(f"{out}-{rank}"))
    leave()


if __name__ == "__main__":
    main()
