"""What holds for every policy of NeMo's with any valid arguments."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_novograd import lr_scheduler

WITH_HOLD = {
    "NoamHoldAnnealing",
    "PolynomialHoldDecayAnnealing",
    "WarmupHoldAnnealLinear",
    "WarmupHoldAnnealOneMinusSquareRoot",
    "WarmupHoldPolicy",
}
WITHOUT_WARMUP = {"T5InverseSquareRootAnnealing"}
# min_lr is what follows max_steps and does not bound the annealing before
NOT_FLOORED = {"InverseSquareRootAnnealing", "T5InverseSquareRootAnnealing"}


@st.composite
def phase(draw, name, most):
    """Arguments for a phase of at most `most` steps, or none."""
    steps = draw(st.none() | st.integers(0, most))
    return {} if steps is None else {f"{name}_steps": steps}


@st.composite
def valid_arguments(draw, name):
    max_steps = draw(st.integers(1, 60))
    base_lr = draw(st.floats(1e-4, 10.0))
    args = {"max_steps": max_steps, "min_lr": draw(st.floats(0.0, 0.99)) * base_lr}
    if name not in WITHOUT_WARMUP:
        args |= draw(phase("warmup", max_steps))
    warmup_steps = args.get("warmup_steps", 0)
    if name in WITH_HOLD and max_steps - warmup_steps > 1:
        args |= draw(phase("hold", max_steps - warmup_steps - 1))
    if name == "CosineAnnealing" and max_steps - warmup_steps > 1:
        args |= draw(phase("constant", max_steps - warmup_steps - 1))
    if name == "NoamHoldAnnealing":
        args["decay_rate"] = draw(st.floats(0.0, 2.0))
        if not warmup_steps:
            args["warmup_steps"] = 1
            args.pop("hold_steps", None)
    if name == "NoamAnnealing":
        args["d_model"] = draw(st.integers(1, 1024))
    if name == "T5InverseSquareRootAnnealing":
        args["constant_steps"] = draw(st.integers(1, max_steps))
        args["min_lr"] = draw(st.floats(0.0, 1.0)) / math.sqrt(args["constant_steps"])
    if name.startswith("Polynomial"):
        args |= {"power": draw(st.floats(0.0, 4.0)), "cycle": draw(st.booleans())}
    return base_lr, args


def make(name, base_lr, args):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base_lr)
    return optimizer, getattr(lr_scheduler, name)(optimizer, **args)


def highest(name, base_lr, args):
    """The peak of the schedule, its base LR for most."""
    warmup_steps = args.get("warmup_steps", 0)
    if name == "T5InverseSquareRootAnnealing":
        return 1 / math.sqrt(args["constant_steps"])
    if name == "NoamAnnealing":
        return max(base_lr / math.sqrt(args["d_model"] * max(1, warmup_steps)), args["min_lr"])
    return base_lr


def continuous(name, base_lr, args):
    """Whether no phase starts with a jump (docs/schedules.md lists those of NeMo's that do)."""
    warmup_steps = args.get("warmup_steps", 0)
    if name == "SquareRootAnnealing":
        return warmup_steps == 0
    if name in WITH_HOLD - {"WarmupHoldPolicy", "NoamHoldAnnealing"}:
        return warmup_steps == 0 or "hold_steps" in args
    if name == "NoamAnnealing":  # a min_lr above the peak is a jump
        return args["min_lr"] <= highest(name, base_lr, {**args, "min_lr": 0.0})
    return True


def largest_step(name, peak, args):
    """Bound of |lr(s+1) - lr(s)| before max_steps: the slope of warmup, or of the formula where it is steepest."""
    max_steps, warmup_steps = args["max_steps"], args.get("warmup_steps", 0)
    length = max(1, max_steps - warmup_steps - (args.get("hold_steps") or 0) - (args.get("constant_steps") or 0))
    power = args.get("power", 1.0)
    annealing = {
        "WarmupPolicy": 0.0,
        "WarmupHoldPolicy": 0.0,
        "SquareAnnealing": 2 / length,
        "SquareRootAnnealing": 1 / math.sqrt(max_steps),
        "CosineAnnealing": math.pi / 2 / length,
        "NoamAnnealing": 0.5 / warmup_steps if warmup_steps else 1 - math.sqrt(0.5),
        "NoamHoldAnnealing": args.get("decay_rate", 0.5) / max(1, warmup_steps),
        "WarmupHoldAnnealOneMinusSquareRoot": 1 / math.sqrt(length),
        "WarmupHoldAnnealLinear": 1 / length,
        "WarmupAnnealing": 1 / length,
        "InverseSquareRootAnnealing": 0.5 / (warmup_steps + 1),
        "T5InverseSquareRootAnnealing": 0.5 / (args.get("constant_steps") or 1),
        # with a power below 1 the last step is the steepest; power 0 is constant up to the end and then drops
        "PolynomialDecayAnnealing": power / length if power >= 1 else length**-power,
        "PolynomialHoldDecayAnnealing": power / length if power >= 1 else length**-power,
    }[name]
    if not warmup_steps:
        return peak * annealing
    slope = 1 / warmup_steps if name == "NoamAnnealing" or args.get("constant_steps") else 1 / (warmup_steps + 1)
    return peak * max(slope, annealing)


NEMO_POLICIES = sorted(
    name for name in lr_scheduler.__all__ if getattr(lr_scheduler, name).__module__.endswith(".nemo")
)


def test_all_of_nemos_policies_are_covered():
    assert len(NEMO_POLICIES) == 14


@pytest.mark.parametrize("name", NEMO_POLICIES)
def test_bounds_continuity_and_function(name):
    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(valid_arguments(name))
    def check(arguments):
        base_lr, args = arguments
        optimizer, scheduler = make(name, base_lr, args)
        max_steps, min_lr = args["max_steps"], args["min_lr"]
        lrs = [scheduler.lr_at(step, base_lr) for step in range(max_steps + 4)]

        for lr in lrs:
            assert optimizer.param_groups[0]["lr"] == lr
            optimizer.step()
            scheduler.step()

        assert all(math.isfinite(lr) for lr in lrs)
        peak = highest(name, base_lr, args)
        floor = min([min_lr, lrs[0], *([lrs[max_steps]] if name in NOT_FLOORED else [])])
        assert min(lrs) >= max(0.0, floor - 1e-12 * peak)
        assert max(lrs) <= max(peak, min_lr) * (1 + 1e-12)
        if name != "NoamAnnealing":
            assert lrs[max_steps + 1 :] == [min_lr] * 3

        tolerance = 1e-9 * base_lr
        during_run = list(itertools.pairwise(lrs[: max_steps + 1]))
        if continuous(name, base_lr, args):
            assert all(abs(b - a) <= largest_step(name, peak, args) + tolerance for a, b in during_run)
        if not args.get("cycle"):
            warmed_up = [(a, b) for s, (a, b) in enumerate(during_run) if s >= args.get("warmup_steps", 0)]
            if continuous(name, base_lr, args):
                assert all(b <= a + tolerance for a, b in warmed_up), "the LR rises after warmup"

    check()


@pytest.mark.parametrize("name", sorted(set(NEMO_POLICIES) - WITHOUT_WARMUP))
def test_ratios_are_truncated_steps(name):
    @settings(max_examples=30, deadline=None, derandomize=True, database=None)
    @given(st.integers(2, 500), st.floats(0.0, 0.9))
    def check(max_steps, ratio):
        extra = {"d_model": 8} if name == "NoamAnnealing" else {}
        steps = int(ratio * max_steps)
        if name == "NoamHoldAnnealing" and steps == 0:
            return
        _, by_ratio = make(name, 0.1, {"max_steps": max_steps, "warmup_ratio": ratio, **extra})
        _, by_steps = make(name, 0.1, {"max_steps": max_steps, "warmup_steps": steps, **extra})
        assert by_ratio.state_dict() == by_steps.state_dict()

    check()
