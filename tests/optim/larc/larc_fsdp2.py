"""Trains sharded layers under LARC; started once per rank by test_larc_distributed.py.

python larc_fsdp2.py RANK WORLD_SIZE STORE_FILE RESULT_FILE
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lightning_novograd.optim import Composite, NovoGrad
from lightning_novograd.optim.larc.optimizer import LARC

CASES = {
    "gradient": lambda params: LARC(torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.01), 0.01),
    "gradient, foreach": lambda params: LARC(torch.optim.SGD(params, lr=0.1, foreach=True), 0.01, clip=False),
    "update": lambda params: LARC(torch.optim.AdamW(params, lr=0.01), 0.01),
    "update, novograd": lambda params: LARC(NovoGrad(params, lr=0.05, weight_decay=0.01), 0.01),
    "update, composite": lambda params: LARC(
        Composite([NovoGrad(params[::2], lr=0.05, weight_decay=0.01), torch.optim.AdamW(params[1::2], lr=0.01)]), 0.01
    ),
    "excluded": lambda params: LARC(
        torch.optim.SGD([{"params": [p], "larc": p.ndim > 1} for p in params], lr=0.1, weight_decay=0.01), 0.01
    ),
}
STEPS = 3


def make_model():
    # 5 and 3 rows over 2 ranks: shards differ in size, and the last bias is all on one rank
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3), torch.nn.Linear(3, 1)
    ).double()


def train(model, larc):
    """The full weights and the factors of the last step, after some steps on the same data in every process."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(8, 4, generator=generator, dtype=torch.float64)
        model(x).square().mean().backward()
        larc.step()
        larc.zero_grad()
    weights = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return [w.detach().clone() for w in weights], [f.clone() for _, f in larc.factors]


def main(rank, world_size, store, result):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(world_size))
    mesh = init_device_mesh("cpu", (int(world_size),))
    results = {}
    for name, build in CASES.items():
        model = make_model()
        for layer in model:
            if isinstance(layer, torch.nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert all(isinstance(p, DTensor) for p in model.parameters())
        larc = build(list(model.parameters()))
        results[name] = train(model, larc)
        set_grads = [torch.ones_like(p) for p in model.parameters()]
        for p, grad in zip(model.parameters(), set_grads, strict=True):
            p.grad = grad
        larc.step()
        assert all(p.grad is grad for p, grad in zip(model.parameters(), set_grads, strict=True))
    results["all-reduces"] = count_all_reduces(model)
    if int(rank) == 0:
        torch.save(results, result)
    sys.path.append(str(Path(__file__).parents[2]))
    from ranks import leave

    leave()


def count_all_reduces(model):
    """Collectives of one step, per target, around an optimizer that needs none itself."""
    counts = {}
    all_reduce = dist.all_reduce
    for target in ("gradient", "update"):
        larc = LARC(torch.optim.SGD(model.parameters(), lr=0.1), target=target)
        calls = []
        dist.all_reduce = lambda *args, calls=calls, **kwargs: calls.append(1) or all_reduce(*args, **kwargs)
        larc.step()
        dist.all_reduce = all_reduce
        counts[target] = len(calls)
    return counts


if __name__ == "__main__":
    main(*sys.argv[1:])
