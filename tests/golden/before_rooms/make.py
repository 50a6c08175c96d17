"""Make the checkpoints in this folder: `OMP_NUM_THREADS=1 python tests/golden/before_rooms/make.py`.

It ran at commit 01a886b, the last one before the package was divided into rooms; at a later commit it proves nothing.

Weights, gradients and options are fractions of few bits whose denominators are powers of two, and so are all norms,
quotients and roots of norms: neither a CPU's instructions nor the order of a sum changes a bit of the result.
`check_exact` runs the same steps in float64 and with every worker, and finds the same values.
"""

import copy
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import before_rooms_runs as runs

from lightning_novograd import LARC, NovoGrad, lr_scheduler

Grads = list[list[Tensor | None]]
Table = list[tuple[tuple[int, ...], list[int | None]]]


def of_squared_norm(total: int, shape: Sequence[int], rng: random.Random) -> Tensor:
    """Whole numbers in random places and of random signs, of which the squares sum up to `total`."""
    grad = torch.zeros(shape)
    flat, left = grad.view(-1), total
    places = rng.sample(range(flat.numel()), flat.numel())
    for index, place in enumerate(places):
        largest = int(left**0.5)
        remaining = len(places) - index - 1
        # at least four places, or one square, must be left for what remains (Lagrange)
        value = rng.randint(0, largest) if remaining > 4 else largest
        flat[place] = value * rng.choice((-1, 1))
        left -= value**2
    return grad if left == 0 else of_squared_norm(total, shape, rng)


def whole_numbers(shape: Sequence[int], rng: random.Random) -> Tensor:
    return torch.tensor([float(rng.randint(-3, 3)) for _ in range(torch.Size(shape).numel())]).view(shape)


def signs(shape: Sequence[int], seed: int) -> Tensor:
    rng = random.Random(seed)
    return torch.tensor([rng.choice((-1.0, 1.0)) for _ in range(torch.Size(shape).numel())]).view(shape)


# A layer's second moments after each step. Their roots plus eps, which is 1, are powers of two; beta2 is a half, so the
# squared norm of a gradient is 2 v' - v. None: no gradient at that step.
HALVES: Table = [
    ((2, 3), [1, 9, 9, 49, 49, 225]),
    ((37,), [9, 9, 49, 49, 225, 225]),
    ((), [9, 9, 9, 9, 9, 9]),
    ((5, 1, 3), [1, 1, None, 1, 9, 9]),
    ((4, 4), [None, None, 9, 49, 49, 225]),
    ((3, 3, 2), [None, None, None, None, 1, 49]),  # frozen when the checkpoint was made
]
# The same for eps 0 and beta2 a quarter: powers of four, a squared norm of (4 v' - v) / 3, 0 where v falls.
QUARTERS: Table = [
    ((2, 3), [16, 4, 4, 1, 1, 16]),
    ((37,), [4, 64, 16, 16, 64, 16]),
    ((), [4, 4, 1, 1, 1, 1]),
    ((5, 1, 3), [64, 16, None, 16, 4, 16]),
    ((4, 4), [None, None, 16, 4, 4, 4]),
    ((3, 3, 2), [None, None, None, None, 16, 16]),
]


def novograd_inputs(table: Table, quarters: bool) -> tuple[list[Tensor], Grads]:
    rng = random.Random(1)
    weights = [whole_numbers(shape, rng) for shape, _ in table]
    grads: Grads = [[] for _ in range(runs.LAST)]
    for shape, moments in table:
        before = 0
        for index, moment in enumerate(moments):
            if moment is None:
                grads[index].append(None)
                continue
            first = moment if before == 0 else None
            later = (4 * moment - before) // 3 if quarters else 2 * moment - before
            grads[index].append(of_squared_norm(later if first is None else first, shape, rng))
            before = moment
    return weights, grads


def novograd(options: dict[str, Any], table: Any, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    weights, grads = novograd_inputs(table, quarters=options["eps"] == 0.0)
    weights, grads = [w.to(dtype) for w in weights], [[None if g is None else g.to(dtype) for g in gs] for gs in grads]

    def new(groups: list[dict[str, Any]], **worker: bool) -> Optimizer:
        groups[1] |= {"lr": 0.25, "weight_decay": 0.0, "grad_averaging": True, "maximize": True}
        return NovoGrad(groups, **options, **worker)

    return record(new, weights, lambda index, layers: grads[index])


# ---------------------------------------------------------------------------------------------- LARC

# Layers whose elements have one magnitude each: the norm of 4 or 16 of them is 2 or 4 times that.
SHAPES = [(2, 2), (), (4, 2, 2), (1, 4), (16,), (2, 2)]
PATTERNS = [signs(shape, seed) for seed, shape in enumerate(SHAPES)]


# Weight, and the sizes of its gradients; None: as large as makes |g| + decay |w| a power of two, so that the factor is
# a fraction (found by trying). With the other sizes the factor is 1.
LARC_SGD: list[tuple[float, tuple[float | None, ...]]] = [
    (8.0, (None, 1 / 8, 0.0, None, 1 / 4, None)),
    (16.0, (1 / 4, 0.0, None, 1 / 8, None, None)),
    (32.0, (1 / 4, 0.0, None, 1 / 8, None, None)),
    (12.0, (None, 1 / 4, 0.0, None, 1 / 4, None)),
]


def larc_sgd() -> dict[str, Any]:
    """Target gradient; momentum is a half and the trust coefficient too."""

    def new(groups: list[dict[str, Any]]) -> Optimizer:
        groups[1] |= {"larc": False, "lr": 0.25, "weight_decay": 0.5}
        sgd = torch.optim.SGD(groups, lr=1.0, momentum=0.5, weight_decay=0.25)
        return LARC(sgd, trust_coefficient=0.5, eps=0.0, min_update=2**-8)

    rng = random.Random(2)

    def grads(index: int, layers: runs.Layers) -> list[Tensor | None]:
        found: list[Tensor | None] = []
        for (_, sizes), layer in zip(LARC_SGD, layers[:-2], strict=True):
            weight, size = layer.detach(), sizes[index]
            found.append(weight.sign() * (16 - 0.25 * weight.abs() if size is None else size))
        return [*found, *(whole_numbers(layer.shape, rng) for layer in layers[-2:])]

    starts = [weight for weight, _ in LARC_SGD] + [3.0, 1.0]
    return record(new, [start * p for start, p in zip(starts, PATTERNS, strict=True)], grads)


# Weight, and gradients as multiples of the last root of the second moment; beta1 is a half, eps 0. The length of a step
# then divides the weights' length evenly wherever LARC shortens it (found by trying).
LARC_NOVOGRAD = [(7 / 8, (1, 1, -1, 0, 1, 0)), (1 / 2, (1, 0, 0, -1, 0, 0)), (3 / 8, (-1, 1, 0, 0, 0, -1))]


def larc_novograd() -> dict[str, Any]:
    """Target update around NovoGrad, beta2 a quarter: a zero gradient halves the root of the second moment."""

    def new(groups: list[dict[str, Any]]) -> Optimizer:
        groups[1] |= {"larc": False, "weight_decay": 0.5}
        return LARC(NovoGrad(groups, lr=0.5, betas=(0.5, 0.25), eps=0.0), trust_coefficient=0.25, eps=0.0)

    plan = [LARC_NOVOGRAD[place % 3] for place in range(len(SHAPES))]
    root = [4.0] * len(SHAPES)

    def grads(index: int, layers: runs.Layers) -> list[Tensor | None]:
        found: list[Tensor | None] = []
        for place, (pattern, (_, steps)) in enumerate(zip(PATTERNS, plan, strict=True)):
            if index > 0 and steps[index] == 0:
                root[place] /= 2
            found.append(pattern * steps[index] * (root[place] / pattern.numel() ** 0.5))
        return found

    # |m| is |w|'s share of a layer of four; a layer of one or 16 elements has another root of its number
    starts = [w * 4 / p.numel() ** 0.5 / 2 * p for p, (w, _) in zip(PATTERNS, plan, strict=True)]
    return record(new, starts, grads)


def larc_adamw() -> dict[str, Any]:
    """Target update around AdamW, beta1 a half, beta2 and eps 0: a step is lr m / (1 - 2^-t) / |g|.

    The gradient is the moment before it, or -1/2 or -2 of that: the moment after it is that of before, a quarter of it
    or -1/2 of it, and the quotient of both is 1, 1/2 or 1/4. lr has the factor 1 - 2^-t.
    """

    def new(groups: list[dict[str, Any]]) -> Optimizer:
        groups[1] |= {"larc": False}
        adamw = torch.optim.AdamW(groups, lr=0.25, betas=(0.5, 0.0), eps=0.0, weight_decay=0.0)
        return LARC(adamw, trust_coefficient=0.25, eps=0.0)

    times = [(1, -2, 1, -0.5, -2), (-2, 1, -2, -2, 1), (1, -0.5, 1, -2, -0.5)]
    moments = [8.0 * pattern for pattern in PATTERNS]

    def grads(index: int, layers: runs.Layers) -> list[Tensor | None]:
        if index == 0:
            return [2 * moment for moment in moments]
        found: list[Tensor | None] = []
        for place, moment in enumerate(moments):
            grad = times[place % 3][index - 1] * moment
            moments[place] = (moment + grad) / 2
            found.append(grad)
        return found

    lrs = [0.5 * (1 - 2.0**-t) for t in range(1, runs.LAST + 1)]
    return record(new, [start * p for start, p in zip((1, 0.5, 2, 0.75, 1, 3), PATTERNS, strict=True)], grads, lrs)


def larc_adamw_usual() -> dict[str, Any]:
    """Around AdamW as it is used: nothing is exact here."""
    generator = torch.Generator().manual_seed(3)

    def new(groups: list[dict[str, Any]]) -> Optimizer:
        groups[1] |= {"larc_clip": False, "lr": 0.02}
        return LARC(torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.98), weight_decay=0.1), trust_coefficient=0.02)

    def grads(index: int, layers: runs.Layers) -> list[Tensor | None]:
        return [torch.randn(layer.shape, generator=generator) for layer in layers]

    return record(new, [torch.randn(shape, generator=generator) for shape in SHAPES], grads, exact=False)


# ---------------------------------------------------------------------------------------------- recording


def record(
    new: Callable[..., Optimizer],
    weights: list[Tensor],
    grads_of: Callable[[int, runs.Layers], list[Tensor | None]],
    lrs: list[float] | None = None,
    exact: bool = True,
) -> dict[str, Any]:
    """Six steps: the state_dict after three of them, the gradients of the others and where these have led."""
    layers = [torch.nn.Parameter(w.clone()) for w in weights]
    optimizer = new(runs.in_two_groups(layers))
    all_grads: Grads = []
    factors: list[float] = []
    saved: dict[str, Any] = {}
    for index in range(runs.LAST):
        if index == runs.SAVED:
            saved = {"state": copy.deepcopy(optimizer.state_dict()), "weights": [w.detach().clone() for w in layers]}
        all_grads.append(grads_of(index, layers))
        runs.step(optimizer, layers, all_grads[-1], lrs[index] if lrs else None)
        if isinstance(optimizer, LARC) and index >= runs.SAVED:
            factors += [factor for _, values in optimizer.factors for factor in values.tolist()]
    assert not factors or (min(factors) < 1 and max(factors) == 1), "LARC leaves some steps as they are, others not"
    after = {"weights": [w.detach().clone() for w in layers], "state": copy.deepcopy(optimizer.state_dict())}
    if exact:
        check_exact(new, weights, all_grads, lrs, after)
    rest = {"grads": all_grads[runs.SAVED :], "lrs": lrs and lrs[runs.SAVED :]}
    return {**saved, **rest, "weights_after": after["weights"], "state_after": after["state"]}


def check_exact(
    new: Callable[..., Optimizer], weights: list[Tensor], grads: Grads, lrs: list[float] | None, after: dict[str, Any]
) -> None:
    workers: list[dict[str, Any]] = [{}, {"foreach": True}, {"foreach": False, "fused": False}]
    half = weights[0].dtype == torch.bfloat16
    for worker in workers:
        for dtype in (weights[0].dtype, *(() if half else (torch.float64,))):
            layers = [torch.nn.Parameter(w.to(dtype, copy=True)) for w in weights]
            optimizer = new(runs.in_two_groups(layers))
            for group in optimizer.param_groups:
                group.update(worker)
            for index, of_step in enumerate(grads):
                runs.step(
                    optimizer,
                    layers,
                    [None if g is None else g.to(dtype) for g in of_step],
                    lrs[index] if lrs else None,
                )
            for layer, expected in zip(layers, after["weights"], strict=True):
                assert torch.equal(layer.detach().double(), expected.double()), (worker, dtype, layer, expected)


def checked_bits(cases: dict[str, dict[str, Any]]) -> None:
    """How many bits the weights have: what is left to 24 is what an intermediate result may have more."""
    for name, case in cases.items():
        most = max((int(bits(w)) for w in case["weights_after"] if w.numel()), default=0)
        print(f"{name}: at most {most} bits")


def bits(weights: Tensor) -> int:
    found = 0
    for value in weights.double().flatten().tolist():
        top, _ = abs(value).as_integer_ratio()
        found = max(found, len(bin(top).rstrip("0")) - 2 if top else 0)
    return found


# ---------------------------------------------------------------------------------------------- the other kinds


def schedules() -> dict[str, Any]:
    found = {}
    for name, new in runs.SCHEDULES.items():
        schedule = new(runs.sgd_to_schedule())
        runs.learning_rates(schedule, runs.SAVED_SCHEDULE)
        saved = {"state": schedule.state_dict(), "optimizer": schedule.optimizer.state_dict()}
        saved = copy.deepcopy(saved)
        found[name] = saved | {"lrs": runs.learning_rates(schedule, runs.LAST_SCHEDULE - runs.SAVED_SCHEDULE)}
    return found


def objects(cases: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Whole optimizers and schedules in mid-run, and what the schedules come to.

    Their pickles name the modules of their classes. Schedules from other modules than `lr_scheduler` are apart.
    """
    found: dict[str, Any] = {}
    for name in ("novograd", "larc-sgd", "larc-novograd"):
        layers = [torch.nn.Parameter(w.clone()) for w in cases[name]["weights"]]
        found[name] = runs.OPTIMIZERS[name](runs.in_two_groups(layers))
        found[name].load_state_dict(cases[name]["state"])
    expected: dict[str, Any] = {}
    schedules = {name: runs.SCHEDULES[name](runs.sgd_to_schedule()) for name in runs.OURS}
    for name, schedule in schedules.items():
        runs.learning_rates(schedule, runs.SAVED_SCHEDULE)
        expected[name] = runs.learning_rates(copy.deepcopy(schedule), runs.LAST_SCHEDULE - runs.SAVED_SCHEDULE)
    found["schedules"] = {name: s for name, s in schedules.items() if type(s).__module__ == lr_scheduler.__name__}
    weight = torch.nn.Parameter(torch.full((2,), 3.0))
    novograd = NovoGrad([weight], lr=0.5, betas=(0.5, 0.5), eps=1.0)
    schedule = lr_scheduler.WarmupPolicy(novograd, warmup_steps=3)  # by quarters
    runs.scheduled(novograd, schedule, runs.SAVED)
    found["scheduled"] = {"optimizer": novograd, "schedule": schedule}
    ahead = copy.deepcopy(found["scheduled"])
    expected["scheduled"] = runs.scheduled(**ahead, steps=runs.LAST - runs.SAVED)
    others = {name: s for name, s in schedules.items() if name not in found["schedules"]}
    return found, others, expected


def lightning(folder: Path) -> dict[str, Any]:
    torch.manual_seed(4)
    net = runs.regression()
    run = runs.trainer(runs.SAVED_EPOCHS)
    run.fit(net, runs.points())
    run.save_checkpoint(folder / "lightning.ckpt")
    rest = runs.regression()
    run = runs.trainer(runs.EPOCHS)
    run.fit(rest, runs.points(), ckpt_path=folder / "lightning.ckpt", weights_only=True)
    lrs = [group["lr"] for group in run.optimizers[0].param_groups]
    return {"weights": rest.state_dict(), "lrs": lrs, "global_step": run.global_step}


def recipe(folder: Path) -> dict[str, Any]:
    from lightning_novograd.recipes.asr.train import run

    with tempfile.TemporaryDirectory() as scratch:
        audio = Path(scratch) / "audio"
        audio.mkdir()
        manifest = runs.write_tones(audio)
        whole = Path(scratch) / "whole"
        run(runs.recipe_config(manifest), whole)
        [saved] = (whole / "checkpoints").glob(f"step=*{runs.SAVED_RECIPE}.ckpt")
        checkpoint = renamed(torch.load(saved, weights_only=True), scratch, "runs")
        torch.save(checkpoint, folder / "recipe.ckpt")
        last = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)
        # not what the uninterrupted run got to but a resumed one, which is to be the same
        resumed = Path(scratch) / "resumed"
        run(runs.recipe_config(manifest, folder / "recipe.ckpt"), resumed)
        again = torch.load(resumed / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(torch.equal(again["state_dict"][name], value) for name, value in last["state_dict"].items())
    return {
        "weights": last["state_dict"],
        "lrs": [group["lr"] for group in last["optimizer_states"][0]["param_groups"]],
        "global_step": last["global_step"],
        "tones": runs.digest_of_tones(),
    }


def renamed(value: Any, name: str, new: str) -> Any:
    """The same with another name for a folder, wherever it is: no name of a temporary folder is kept."""
    if isinstance(value, dict):
        items = [(renamed(key, name, new), renamed(item, name, new)) for key, item in value.items()]
        return dict(items) if type(value) is dict else value
    if isinstance(value, list | tuple):
        return type(value)(renamed(item, name, new) for item in value)
    return value.replace(name, new) if isinstance(value, str) else value


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*(num_workers|dirpath has changed|LeafSpec).*")
    halves = {"lr": 0.5, "betas": (0.5, 0.5), "eps": 1.0, "weight_decay": 0.5}
    cases = {
        "novograd": novograd(halves, HALVES),
        "novograd-amsgrad": novograd(
            {"lr": 0.5, "betas": (0.5, 0.25), "eps": 0.0, "weight_decay": 0.5, "amsgrad": True}, QUARTERS
        ),
        "novograd-bfloat16": novograd(halves, HALVES, torch.bfloat16),
        "larc-sgd": larc_sgd(),
        "larc-novograd": larc_novograd(),
        "larc-adamw": larc_adamw(),
        "larc-adamw-usual": larc_adamw_usual(),
    }
    checked_bits(cases)
    torch.save(cases, folder / "optimizers.pt")
    torch.save(schedules(), folder / "schedules.pt")
    whole, others, expected = objects(cases)
    torch.save(whole, folder / "objects.pt")
    torch.save(others, folder / "objects_of_other_modules.pt")
    after = {"objects": expected, "lightning": lightning(folder), "recipe": recipe(folder)}
    torch.save(after, folder / "expected.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
