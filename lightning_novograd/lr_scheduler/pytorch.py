"""What torch's schedulers can work with.

Their constructors look at few of their arguments: `StepLR(step_size=0)` divides by zero at the first step, and
`PolynomialLR(power=-1)` at its last, perhaps hours later; `gamma=-1` makes the LR negative without a word.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch.optim import lr_scheduler as torch

from lightning_novograd.lr_scheduler.base import ScheduleError


class _Range(NamedTuple):
    words: str
    holds: Callable[[float], bool]


_NOT_NEGATIVE = _Range("at least 0", lambda value: value >= 0)
_POSITIVE = _Range("above 0", lambda value: value > 0)
_AT_LEAST_1 = _Range("at least 1", lambda value: value >= 1)
_SHARE = _Range("in 0..1", lambda value: 0 <= value <= 1)
_POSITIVE_SHARE = _Range("above 0 and at most 1", lambda value: 0 < value <= 1)
_BELOW_1 = _Range("at least 0 and below 1", lambda value: 0 <= value < 1)

_RANGES: dict[type, dict[str, _Range]] = {
    torch.StepLR: {"step_size": _AT_LEAST_1, "gamma": _NOT_NEGATIVE},
    torch.MultiStepLR: {"milestones": _NOT_NEGATIVE, "gamma": _NOT_NEGATIVE},
    # with 0 iterations the LR would stay at the first factor
    torch.ConstantLR: {"factor": _POSITIVE_SHARE, "total_iters": _AT_LEAST_1},
    torch.LinearLR: {"start_factor": _POSITIVE_SHARE, "end_factor": _SHARE, "total_iters": _AT_LEAST_1},
    torch.ExponentialLR: {"gamma": _NOT_NEGATIVE},
    torch.PolynomialLR: {"total_iters": _AT_LEAST_1, "power": _NOT_NEGATIVE},
    torch.CosineAnnealingLR: {"T_max": _AT_LEAST_1, "eta_min": _NOT_NEGATIVE},
    torch.CosineAnnealingWarmRestarts: {"T_0": _AT_LEAST_1, "T_mult": _AT_LEAST_1, "eta_min": _NOT_NEGATIVE},
    torch.SequentialLR: {"milestones": _AT_LEAST_1},
    torch.CyclicLR: {
        "base_lr": _NOT_NEGATIVE,
        "max_lr": _NOT_NEGATIVE,
        "step_size_up": _AT_LEAST_1,
        "step_size_down": _NOT_NEGATIVE,
        "gamma": _NOT_NEGATIVE,
        "base_momentum": _BELOW_1,
        "max_momentum": _BELOW_1,
    },
    torch.OneCycleLR: {
        "max_lr": _NOT_NEGATIVE,
        "total_steps": _AT_LEAST_1,
        "epochs": _AT_LEAST_1,
        "steps_per_epoch": _AT_LEAST_1,
        "pct_start": _BELOW_1,
        "base_momentum": _BELOW_1,
        "max_momentum": _BELOW_1,
        "div_factor": _POSITIVE,
        "final_div_factor": _POSITIVE,
    },
    torch.ReduceLROnPlateau: {
        "factor": _BELOW_1,
        "patience": _NOT_NEGATIVE,
        "cooldown": _NOT_NEGATIVE,
        "min_lr": _NOT_NEGATIVE,
        "eps": _NOT_NEGATIVE,
    },
}


def check_arguments(cls: type, args: Mapping[str, Any]) -> None:
    """Raise for arguments with which torch's scheduler `cls` would fail in mid-run; other classes check their own.

    Raises:
        ScheduleError: `path` is the argument at fault.

    """
    for name, allowed in _RANGES.get(cls, {}).items():
        value = args.get(name)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and not allowed.holds(number):
                raise ScheduleError(name, f"{value} is out of range; must be {allowed.words}")
    if cls is torch.SequentialLR and sorted(set(args["milestones"])) != args["milestones"]:
        raise ScheduleError("milestones", f"{args['milestones']} do not rise")
    if cls is torch.OneCycleLR:
        _check_one_cycle(**args)


def _check_one_cycle(
    *,
    total_steps: int | None = None,
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
    pct_start: float = 0.3,
    three_phase: bool = False,
    **_: Any,
) -> None:
    if (epochs is None) != (steps_per_epoch is None):
        given, other = ("epochs", "steps_per_epoch") if steps_per_epoch is None else ("steps_per_epoch", "epochs")
        raise ScheduleError(given, f"has no effect without {other}; give both or neither")
    if total_steps is not None and epochs is not None:
        raise ScheduleError("epochs", f"{epochs}, but total_steps is {total_steps}; give one")
    if three_phase and pct_start > 0.5:
        # the LR falls back to where it started in as many steps as it rose
        raise ScheduleError("pct_start", f"{pct_start} is out of range; must be at most 0.5 with three_phase")
