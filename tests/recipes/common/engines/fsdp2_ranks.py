"""One of two ranks (test_sharding.py): fits under DDP and under FSDP2 and writes what came of them to rank_<r>.pt."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from ranks import leave
from tiny_speech import MODEL, OPTIM, batch, loader, trainer
from torch.distributed.tensor import DTensor

from lightning_novograd.recipes.asr.training.callbacks import NonFiniteGuard
from lightning_novograd.recipes.asr.training.freezing import freeze
from lightning_novograd.recipes.asr.training.module import CTCModule
from lightning_novograd.recipes.asr.training.sharding import ShardedCTCModule
from lightning_novograd.recipes.common.engines.sharding import FSDP2
from lightning_novograd.recipes.common.engines.strategy import build_strategy
from lightning_novograd.recipes.common.settings.distributed import DistributedSettings
from lightning_novograd.training.callbacks import LayerMonitor

RANK, RANKS = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
FOLDER = Path(sys.argv[1])


def batches(steps: int, bad: int | None = None) -> list:
    value = float("nan") if RANK else None
    return [batch(10 * step + RANK, value=value if step == bad else None) for step in range(steps)]


def fit(strategy: str, frozen: tuple = (), bad: int | None = None, optim: dict[str, Any] | None = None, **options):
    """Train 6 micro-batches; returns losses and whole weights."""
    torch.manual_seed(0)
    given = {"strategy": strategy}
    model = (ShardedCTCModule if strategy == FSDP2 else CTCModule)(MODEL, {**OPTIM, **(optim or {})}, num_samples=0)
    model.guard, losses = NonFiniteGuard("skip"), []
    if frozen:
        freeze(model, frozen)
    step = model.training_step

    def noting(batch, batch_idx):
        loss = step(batch, batch_idx)
        losses.append(loss.item())
        return loss

    model.training_step = noting
    callbacks = [model.guard, *options.pop("callbacks", [])]
    made = trainer(
        callbacks,
        strategy=build_strategy(DistributedSettings(), given, RANKS),
        devices=RANKS,
        use_distributed_sampler=False,
        log_every_n_steps=1,
        **options,
    )
    made.fit(model, loader(batches(6, bad)))
    sharded = sum(isinstance(p, DTensor) for p in model.parameters())
    whole = {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in model.named_parameters()}
    return {
        "losses": losses,
        "weights": {name: weight.detach().clone() for name, weight in whole.items()},
        "sharded": sharded,
        "skipped": model.guard.skipped,
        "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
    }


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"accumulate_grad_batches": 3},
    "skipping": {"bad": 2},
    "clipped": {"optim": {"grad_clip_norm": 0.5}},
    "larc": {"optim": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "larc": {"trust_coefficient": 0.01}}},
    "adamw": {"optim": {"name": "adamw", "lr": 0.01}},
    "frozen": {"frozen": ("encoder.encoder.0.mconv.0*",)},
    "bf16": {"precision": "bf16-mixed"},
}
seen = {}
for name, case in CASES.items():
    for strategy in ("ddp", "fsdp2"):
        seen[f"{name} {strategy}"] = fit(strategy, **case)
try:
    seen["monitored"] = fit("fsdp2", callbacks=[LayerMonitor(2, FOLDER / "monitored")])
except Exception as error:
    seen["monitored"] = f"{type(error).__name__}: {error}"
try:
    seen["ema"] = fit("fsdp2", optim={"ema": 0.9})
except Exception as error:
    seen["ema"] = f"{type(error).__name__}: {error}"
torch.save(seen, FOLDER / f"rank_{RANK}.pt")
leave()
