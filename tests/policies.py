"""What the tests of the schedules share: an example of each policy, reference values by name, a run without a model."""

import json
from pathlib import Path
from typing import Any

import torch

from lightning_novograd.lr_scheduler.base import ClosedFormLR
from lightning_novograd.registry import available_schedulers, get_scheduler

# Reference values of a policy that comes in a file of its own are in `<name>.json`, as `golden_cases` returns them
GOLDEN = Path(__file__).parent / "golden" / "schedules"

ARGUMENTS = {
    "CosineAnnealing": {"max_steps": 30, "warmup_ratio": 0.2, "constant_steps": 4, "min_lr": 1e-3},
    "CosineDecay": {"max_steps": 30, "warmup_steps": 5, "min_lr_ratio": 0.1},
    "ExpDecay": {"decay_steps": 7, "decay_rate": 0.5, "use_staircase_decay": False},
    "InvPolyDecay": {"max_steps": 30, "min_lr": 1e-3},
    "InverseSquareRootAnnealing": {"max_steps": 30, "warmup_steps": 5},
    "NoamAnnealing": {"d_model": 16, "warmup_steps": 5},
    "NoamHoldAnnealing": {"max_steps": 30, "warmup_steps": 5, "hold_steps": 4},
    "PiecewiseConstant": {"boundaries": [5, 20], "decay_rates": [0.1, 0.01]},
    "PolyDecay": {"max_steps": 30, "power": 2.0, "begin_decay_at": 3},
    "PolynomialDecayAnnealing": {"max_steps": 30, "warmup_steps": 5, "power": 2.0},
    "PolynomialHoldDecayAnnealing": {"max_steps": 30, "warmup_steps": 5, "hold_steps": 4, "cycle": True},
    "SquareAnnealing": {"max_steps": 30, "warmup_steps": 5},
    "SquareRootAnnealing": {"max_steps": 30, "warmup_steps": 5},
    "T5InverseSquareRootAnnealing": {"max_steps": 30, "constant_steps": 5},
    "TransformerPolicy": {"d_model": 16, "warmup_steps": 5, "max_lr": 0.01},
    "WarmupAnnealing": {"max_steps": 30, "warmup_steps": 5},
    "WarmupHoldAnnealExponential": {"max_steps": 30, "gamma": 0.9, "num_decays": 6, "warmup_steps": 5, "hold_steps": 4},
    "WarmupHoldAnnealLinear": {"max_steps": 30, "warmup_steps": 5, "hold_ratio": 0.2},
    "WarmupHoldAnnealOneMinusSquareRoot": {"max_steps": 30, "warmup_steps": 5, "hold_steps": 4},
    "WarmupHoldPolicy": {"max_steps": 30, "warmup_steps": 5, "hold_steps": 4},
    "WarmupPolicy": {"max_steps": 30, "warmup_steps": 5},
}
BASE_LRS = (0.1, 0.02)


def make_optimizer(base_lrs=BASE_LRS, as_tensor=False):
    lrs = [torch.tensor(lr, dtype=torch.float64) for lr in base_lrs] if as_tensor else base_lrs
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs], lr=0.1)


def advance(optimizer, scheduler, steps):
    """The LRs of each step, those before the first included."""
    seen = [current(optimizer)]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        seen.append(current(optimizer))
    return seen


def current(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def registered() -> dict[str, type[ClosedFormLR]]:
    """Every policy of this package, by its name in configs."""
    classes = {name: get_scheduler(name).cls for name in available_schedulers()}
    return {
        name: cls
        for name, cls in classes.items()
        if issubclass(cls, ClosedFormLR) and cls.__module__.startswith("lightning_novograd.lr_scheduler.")
    }


def golden_cases(name: str) -> list[dict[str, Any]]:
    """`[{"args": {...}, "base_lr": 0.1, "lr": [...]}]`, where optimizer step `k` sees `lr[k]`; empty without a file."""
    path = GOLDEN / f"{name}.json"
    return json.loads(path.read_text())["cases"] if path.exists() else []


POLICIES = registered()
# A policy that is not in the table is tried with the first of its reference values
NEW = {name: golden_cases(name)[0]["args"] for name in POLICIES if name not in ARGUMENTS and golden_cases(name)}
EXAMPLES = {**ARGUMENTS, **NEW}
