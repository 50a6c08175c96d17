"""One of two ranks (test_ranks.py): fits with batches of its own, and writes what it has seen to rank_<r>.json."""

import json
import sys
from pathlib import Path

import torch
from ranks import leave
from tiny_speech import MODEL, OPTIM, batch, loader, trainer

from lightning_novograd.recipes.asr.training.callbacks import NonFiniteGuard
from lightning_novograd.recipes.asr.training.module import CTCModule
from lightning_novograd.recipes.common.callbacks import BatchSeed


class Notes(CTCModule):
    noise: list

    def training_step(self, batch, batch_idx):
        self.noise.append(torch.rand(()).item())
        return super().training_step(batch, batch_idx)


def fit(made, guard, batches, dev=None) -> Notes:
    torch.manual_seed(0)
    model = Notes(MODEL, OPTIM, num_samples=0)
    model.guard, model.noise = guard, []
    made.fit(model, loader(batches), dev and loader(dev))
    return model


def two(*callbacks, **options):
    return trainer(callbacks, devices=2, strategy="ddp", use_distributed_sampler=False, **options)


guard = NonFiniteGuard("skip")
made = two(BatchSeed(1), guard, accumulate_grad_batches=2)
rank = made.global_rank
# rank 1 has NaN in the second window; and fewer utterances of the dev set, an odd number in all
bad = [batch(10 + rank), batch(12 + rank, value=float("nan") if rank else None)]
dev = [batch(20, size=3), batch(21, size=2)] if rank == 0 else [batch(22, size=1), batch(23, size=1)]
model = fit(made, guard, [batch(rank), batch(2 + rank), *bad, batch(4 + rank), batch(6 + rank)], dev)
seen = {
    "noise": model.noise,
    "dev_loss": made.callback_metrics["dev_loss"].item(),
    "skipped": guard.skipped,
    "step": made.global_step,
    "weights": sum(p.double().sum().item() for p in model.parameters()),
    "statistics": [bool(torch.isfinite(b).all()) for b in model.buffers()],
}
try:
    fit(two(NonFiniteGuard()), NonFiniteGuard(), [batch(rank)])
    raising = NonFiniteGuard()
    fit(two(raising), raising, [batch(rank), batch(2, value=float("inf") if rank else None)])
except Exception as error:
    seen["error"] = f"{type(error).__name__}: {error}"
torch.save(model.state_dict(), Path(sys.argv[1]) / f"rank_{rank}.pt")
Path(sys.argv[1], f"rank_{rank}.json").write_text(json.dumps(seen))
leave()
