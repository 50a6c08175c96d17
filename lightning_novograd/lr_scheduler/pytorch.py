"""torch's own schedulers, registered with what must be known of them.

Their constructors look at few of their arguments: `StepLR(step_size=0)` divides by zero at the first step, and
`PolynomialLR(power=-1)` at its last, perhaps hours later; `gamma=-1` makes the LR negative without a word.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch.optim import lr_scheduler as torch

from lightning_novograd.lr_scheduler.base import ClosedFormLR, ScheduleError
from lightning_novograd.ranges import AT_LEAST_1, BELOW_1, FINITE, NOT_NEGATIVE, POSITIVE, POSITIVE_SHARE, SHARE, Range
from lightning_novograd.registry import SCHEDULERS, Entry

_RANGES: dict[type, dict[str, Range]] = {
    torch.StepLR: {"step_size": AT_LEAST_1, "gamma": NOT_NEGATIVE},
    torch.MultiStepLR: {"milestones": NOT_NEGATIVE, "gamma": NOT_NEGATIVE},
    # with 0 iterations the LR would stay at the first factor
    torch.ConstantLR: {"factor": POSITIVE_SHARE, "total_iters": AT_LEAST_1},
    torch.LinearLR: {"start_factor": POSITIVE_SHARE, "end_factor": SHARE, "total_iters": AT_LEAST_1},
    torch.ExponentialLR: {"gamma": NOT_NEGATIVE},
    torch.PolynomialLR: {"total_iters": AT_LEAST_1, "power": NOT_NEGATIVE},
    torch.CosineAnnealingLR: {"T_max": AT_LEAST_1, "eta_min": NOT_NEGATIVE},
    torch.CosineAnnealingWarmRestarts: {"T_0": AT_LEAST_1, "T_mult": AT_LEAST_1, "eta_min": NOT_NEGATIVE},
    torch.SequentialLR: {"milestones": AT_LEAST_1},
    torch.CyclicLR: {
        "base_lr": NOT_NEGATIVE,
        "max_lr": NOT_NEGATIVE,
        "step_size_up": AT_LEAST_1,
        "step_size_down": NOT_NEGATIVE,
        "gamma": NOT_NEGATIVE,
        "base_momentum": BELOW_1,
        "max_momentum": BELOW_1,
    },
    torch.OneCycleLR: {
        "max_lr": NOT_NEGATIVE,
        "total_steps": AT_LEAST_1,
        "epochs": AT_LEAST_1,
        "steps_per_epoch": AT_LEAST_1,
        "pct_start": BELOW_1,
        "base_momentum": BELOW_1,
        "max_momentum": BELOW_1,
        "div_factor": POSITIVE,
        "final_div_factor": POSITIVE,
    },
    torch.ReduceLROnPlateau: {
        "factor": BELOW_1,
        "patience": NOT_NEGATIVE,
        "threshold": FINITE,  # any says what counts as an improvement
        "cooldown": NOT_NEGATIVE,
        "min_lr": NOT_NEGATIVE,
        "eps": NOT_NEGATIVE,
    },
}


def _check_milestones(args: Mapping[str, Any]) -> None:
    milestones = args.get("milestones", [])
    if sorted(set(milestones)) != milestones:
        raise ScheduleError("milestones", f"{milestones} do not rise")


def _check_one_cycle(args: Mapping[str, Any]) -> None:
    total_steps, epochs, steps_per_epoch = (args.get(name) for name in ("total_steps", "epochs", "steps_per_epoch"))
    if (epochs is None) != (steps_per_epoch is None):
        given, other = ("epochs", "steps_per_epoch") if steps_per_epoch is None else ("steps_per_epoch", "epochs")
        raise ScheduleError(given, f"has no effect without {other}; give both or neither")
    if total_steps is not None and epochs is not None:
        raise ScheduleError("epochs", f"{epochs}, but total_steps is {total_steps}; give one")
    pct_start = args.get("pct_start", 0.3)
    if args.get("three_phase") and pct_start > 0.5:
        # the LR falls back to where it started in as many steps as it rose
        raise ScheduleError("pct_start", f"{pct_start} is out of range; must be at most 0.5 with three_phase")


# Keys of the state_dict that hold what a scheduler was built with, where they are not just its arguments
_SETTINGS: dict[type, tuple[str, ...]] = {
    torch.SequentialLR: ("_milestones",),
    torch.ChainedScheduler: (),
    torch.LambdaLR: ("lr_lambdas",),
    torch.MultiplicativeLR: ("lr_lambdas",),
    torch.CyclicLR: (
        *("max_lrs", "total_size", "step_ratio", "mode", "gamma"),
        *("scale_mode", "cycle_momentum", "base_momentums", "max_momentums"),
    ),
    torch.OneCycleLR: ("total_steps", "cycle_momentum"),
    torch.ReduceLROnPlateau: (
        *("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown"),
        *("min_lrs", "eps"),
    ),
}
_CHECKS = {torch.SequentialLR: _check_milestones, torch.OneCycleLR: _check_one_cycle}
# stepped once per batch, by torch's documentation
_PER_STEP = (torch.OneCycleLR, torch.CyclicLR)
_LENGTH: dict[type, str] = {torch.OneCycleLR: "total_steps", torch.CosineAnnealingLR: "T_max"}
_LENGTH_PARTS = {torch.OneCycleLR: ("epochs", "steps_per_epoch")}

for _name in torch.__all__:
    _cls = getattr(torch, _name)
    if _cls is not torch.LRScheduler:
        SCHEDULERS.add(
            Entry(
                _name,
                "scheduler",
                _cls,
                ranges=_RANGES.get(_cls, {}),
                check=_CHECKS.get(_cls),
                interval="step" if _cls in _PER_STEP else "epoch",
                length=_LENGTH.get(_cls),
                length_parts=_LENGTH_PARTS.get(_cls, ()),
                settings=_SETTINGS.get(_cls),
                watches_metric=_cls is torch.ReduceLROnPlateau,
            )
        )


def own_length(scheduler: torch.LRScheduler) -> int | None:
    """Steps until a scheduler of torch's has ended, by its own arguments; None if they do not say."""
    if isinstance(scheduler, torch.OneCycleLR):
        return scheduler.total_steps
    return scheduler.T_max + 1 if isinstance(scheduler, torch.CosineAnnealingLR) else None


def one_cycles(scheduler: Any, steps: int, place: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], int, int]]:
    """Every OneCycleLR in a scheduler that is stepped `steps` times; beyond its end it raises.

    Yields:
        Its place (the index in each list of `schedulers` on the way), its length, and how often it is stepped.

    """
    if isinstance(scheduler, torch.OneCycleLR):
        yield place, scheduler.total_steps, steps
    milestones = scheduler._milestones if isinstance(scheduler, torch.SequentialLR) else []
    for index, member in enumerate(getattr(scheduler, "_schedulers", ())):
        begin, end = 0, steps
        if milestones:
            begin = ([0, *milestones])[index]
            end = min([steps, *(milestone - 1 for milestone in milestones[index : index + 1])])
        yield from one_cycles(member, max(0, end - begin), (*place, index))


# LRs of their own, in which a number would stand for every param group
_OWN_LRS: dict[type, tuple[str, ...]] = {torch.OneCycleLR: ("max_lr",), torch.CyclicLR: ("base_lr", "max_lr")}
# The least LR, whatever a param group begins with
_FLOORS: dict[type, str] = {
    torch.ReduceLROnPlateau: "min_lr",
    torch.CosineAnnealingLR: "eta_min",
    torch.CosineAnnealingWarmRestarts: "eta_min",
}
# Arguments by which a block says that it means the momentum, or beta1, to be moved
MOMENTUM_CYCLE = ("cycle_momentum", "base_momentum", "max_momentum")
# They set the LR from the step alone, as our policies do, and so undo what others did to it
_CLOSED_FORMS = (
    *(torch.OneCycleLR, torch.CyclicLR, torch.CosineAnnealingWarmRestarts, torch.LambdaLR),
    torch.SequentialLR,  # at its milestones
)


def own_lrs(cls: type) -> tuple[str, ...]:
    """Arguments of `cls` that are LRs in place of the param groups'."""
    return next((names for base, names in _OWN_LRS.items() if issubclass(cls, base)), ())


def own_floor(cls: type) -> str | None:
    """The argument of `cls` that is the least LR, of every param group, if it has one."""
    return next((name for base, name in _FLOORS.items() if issubclass(cls, base)), None)


def cycles_momentum(cls: type) -> bool:
    """Whether `cls` moves the momentum too, or beta1, unless it is told not to."""
    return issubclass(cls, torch.OneCycleLR | torch.CyclicLR)


def is_closed_form(cls: type) -> bool:
    """Whether `cls` sets the LR from the step alone, whatever another scheduler made of it."""
    return issubclass(cls, (ClosedFormLR, *_CLOSED_FORMS))


# Lists in states of schedulers that have a value for each param group
OF_EACH_GROUP = frozenset(
    ("base_lrs", "_last_lr", "max_lrs", "min_lrs", "base_momentums", "max_momentums", "lr_lambdas")
)
# What schedulers put into param groups and leave there unchanged
GROUP_KEYS = ("initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum")


# They have a value for each group that they were built with, and torch counts on there being as many groups
_OF_FIRST_GROUPS = (torch.CyclicLR, torch.CosineAnnealingWarmRestarts, torch.LambdaLR, torch.MultiplicativeLR)


def bound_to_groups(scheduler: Any, group: Mapping[str, Any]) -> str | None:
    """What in a scheduler of torch's cannot drive a group that joins after it was built.

    Args:
        scheduler: it, or None.
        group: with all that is said of it; under `optimizer` the part of a Composite that it is for. A OneCycleLR needs
            its LRs (`initial_lr`, `max_lr`, `min_lr`) there, and the momentums if it cycles them.

    Returns:
        The name of its class, or of a member's; None if it can.

    """
    if isinstance(scheduler, torch.OneCycleLR):
        first = scheduler.optimizer.param_groups[0]
        return None if {key for key in GROUP_KEYS if key in first} <= group.keys() else type(scheduler).__name__
    if isinstance(scheduler, _OF_FIRST_GROUPS):
        return type(scheduler).__name__
    for index, member in enumerate(getattr(scheduler, "_schedulers", ())):
        part = group.get("optimizer")
        if part is not None and all(own.get("optimizer") != part for own in member.optimizer.param_groups):
            continue  # it drives another part
        # which begin from the LRs that they were built with
        later = isinstance(scheduler, torch.SequentialLR) and index > 0 and not isinstance(member, ClosedFormLR)
        if (found := bound_to_groups(member, group)) or later:
            return found or f"{type(member).__name__} in a SequentialLR"
    return None


def cycled_keys(group: Mapping[str, Any]) -> set[str]:
    """What OneCycleLR and CyclicLR move in a param group besides the LR."""
    return {"momentum", "betas"} & group.keys() if "max_momentum" in group else set()
