"""One of two ranks, or alone (test_ddp_ranks.py): fits under DDP in several ways and notes what came of them.

python ddp_ranks.py FOLDER: rank r writes FOLDER/rank_r.pt.
"""

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ranks import leave
from tiny_speech import MODEL, OPTIM, batch, loader, trainer

from lightning_novograd.recipes.asr.data.dataset import Batch
from lightning_novograd.recipes.asr.training.callbacks import NonFiniteGuard
from lightning_novograd.recipes.asr.training.module import CTCModule
from lightning_novograd.recipes.common.engines.ddp import HookedDDPStrategy
from lightning_novograd.recipes.common.engines.strategy import build_strategy, layer_sync
from lightning_novograd.recipes.common.settings.distributed import DistributedSettings

RANK, RANKS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
STEPS = 4
SEVERAL = {"bucket_cap_mb": 0.0005}


class Noting(CTCModule):
    """Keeps the losses; notes the buckets of DDP while it is there."""

    losses: list[float]
    buckets = 0

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.losses.append(loss.item())
        return loss

    def on_train_end(self):
        if RANKS > 1:
            logged = self.trainer.strategy.model._get_ddp_logging_data()
            self.buckets = len((logged["rebuilt_bucket_sizes"] or logged["bucket_sizes"]).split(","))


def batches(steps: int, micro: int) -> list:
    """Of this rank: a step's micro-batches are the same on one rank and on two."""
    per_step = 2 // RANKS * micro
    return [batch(10 * step + RANK * per_step + i) for step in range(steps) for i in range(per_step)]


def joined(batches: list) -> Batch:
    """One batch of several, whose utterances are equally long."""
    tensors = ("wave_BS", "wave_lens_B", "targets_BU", "target_lens_B")
    merged = {name: torch.cat([getattr(one, name) for one in batches]) for name in tensors}
    texts, places = ([text for one in batches for text in getattr(one, name)] for name in ("texts", "places"))
    return Batch(**merged, texts=texts, places=places)


def fit(options: dict[str, Any] | None = None, steps: int = STEPS, micro: int = 1, data: list | None = None, **given):
    """Train; returns what the fit was seen to do."""
    torch.manual_seed(0)
    model = Noting(MODEL, {**OPTIM, "lr": 0.02}, num_samples=0)
    model.losses, model.guard = [], given.pop("guard", NonFiniteGuard())
    accumulate = given.pop("accumulate", 2 // RANKS * micro)
    arguments: dict[str, Any] = {"accelerator": "cpu", "strategy": "auto", **given}
    strategy = build_strategy(DistributedSettings.read(options or {}, "distributed"), arguments, RANKS)
    sync = layer_sync(arguments, RANKS)
    arguments |= {"strategy": strategy, "plugins": [sync] if sync else None, "sync_batchnorm": False}
    counted: Counter = Counter()
    if isinstance(strategy, HookedDDPStrategy):
        count_buckets(strategy, counted)
    made = trainer(
        [model.guard],
        **{"precision": "64-true", **arguments},
        devices=RANKS,
        use_distributed_sampler=False,
        accumulate_grad_batches=accumulate,
        log_every_n_steps=1,
    )
    made.fit(model, loader(batches(steps, micro) if data is None else data))
    return {
        "weights": {name: value.detach().clone() for name, value in model.state_dict().items()},
        "losses": model.losses,
        "steps": made.global_step,
        "skipped": model.guard.skipped,
        "buckets": model.buckets,
        "sent": counted["buckets"],
        "bytes": counted["bytes"],
    }


def count_buckets(strategy: HookedDDPStrategy, counted: Counter) -> None:
    """Count the buckets that DDP hands to its hook, and the all-reduces that are asked for meanwhile."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    state, hook, wrapper = strategy.communication
    inner = hook or allreduce_hook
    all_reduce = dist.all_reduce

    def counting(state, bucket):
        counted["buckets"] += 1

        def noting(tensor, *args, **kwargs):
            counted["bytes"] += tensor.numel() * tensor.element_size()
            return all_reduce(tensor, *args, **kwargs)

        dist.all_reduce = noting
        try:
            return inner(state, bucket)
        finally:
            dist.all_reduce = all_reduce

    strategy.communication = strategy.communication._replace(state=state, hook=counting, wrapper=wrapper)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    results = {"plain": fit(), "accumulated": fit(micro=3)}
    if RANKS == 1:
        pairs = batches(STEPS, 1)
        together = [joined(pairs[step : step + 2]) for step in range(0, len(pairs), 2)]
        results["together"] = fit(data=together, accumulate=1)
    else:
        bad = batches(STEPS, 2)
        bad[2] = batch(5, value=float("nan") if RANK else None)  # the second step's first micro-batch, on one rank
        powersgd = {"comm_hook": "powersgd", "powersgd": {"start_step": 2}}
        float32 = {"precision": "32-true", "steps": 30}
        results |= {
            "synced": fit(sync_batchnorm=True),
            "several buckets": fit(SEVERAL),
            "several buckets accumulated": fit(SEVERAL, micro=3),
            "several buckets skipping": fit(SEVERAL, micro=2, data=bad, guard=NonFiniteGuard("skip")),
            "bucket view": fit({"gradient_as_bucket_view": True}),
            "static graph": fit({"static_graph": True}),
            "static graph accumulated": fit({"static_graph": True, "gradient_as_bucket_view": True}, micro=3),
            "whole": fit(**float32),
            "bf16": fit({"comm_hook": "bf16"}, **float32),
            "fp16": fit({"comm_hook": "fp16"}, **float32),
            "powersgd": fit(powersgd, **float32),
            "powersgd bf16": fit({**powersgd, "comm_wrapper": "bf16"}, **float32),
            "powersgd skipping": fit(
                powersgd, micro=2, data=[*batches(3, 2), *bad], guard=NonFiniteGuard("skip"), precision="32-true"
            ),
        }
    torch.save(results, folder / f"rank_{RANK}_of_{RANKS}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()
