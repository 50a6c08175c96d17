"""A fit with a batch ramp, alone or as a rank; run by test_batch_ramp.py.

usage: ddp_batch_ramp.py OUT WORLD_SIZE [CHECKPOINT]
"""

import os
import sys

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from ranks import leave
from tiny_fit import Net, Numbers, loader, trainer
from torch.utils.data import DistributedSampler

from lightning_novograd.large_batch import solve_batch_ramp
from lightning_novograd.training.callbacks.batch_ramp import BatchRampScheduler

OPTIM = {"name": "novograd", "lr": 0.01, "sched": {"name": "WarmupAnnealing", "warmup_steps": 2}}


def main() -> None:
    out, world_size, *ckpt = sys.argv[1:]
    devices = int(world_size)
    torch.manual_seed(0)
    net = Net(OPTIM)
    ramp = solve_batch_ramp([[0, 4], [3, 16], [5, 8]], devices=devices, max_per_device_batch_size=4 // devices)
    saved = ModelCheckpoint(f"{out}-saved", "{epoch}", save_top_k=-1)
    run = trainer(
        callbacks=[BatchRampScheduler(ramp, "sqrt"), saved],
        enable_checkpointing=True,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=2,
        use_distributed_sampler=False,  # Lightning's shuffles
    )
    rank = int(os.environ.get("RANK", "0"))
    sampler = DistributedSampler(Numbers(52), devices, rank, shuffle=False)
    run.fit(net, loader(52, 4 // devices, sampler=sampler), ckpt_path=ckpt[0] if ckpt else None, weights_only=True)
    if run.is_global_zero:
        length = run.lr_scheduler_configs[0].scheduler.arguments["max_steps"]
        state = {"weights": net.layer.state_dict(), "lrs": net.lrs, "length": length, "steps": run.global_step}
        torch.save(state, out)
    leave()


if __name__ == "__main__":
    main()
