"""Schedules made of several: what SequentialLR and ChainedScheduler make of their members, and a warmup before any."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, OneCycleLR, SequentialLR

from lightning_novograd.config.length import RunLength, steps_of_epochs
from lightning_novograd.config.schema import SchedConfig, SchedulerSpec
from lightning_novograd.errors import ConfigError
from lightning_novograd.lr_scheduler.base import ClosedFormLR, ScheduleError, assign
from lightning_novograd.lr_scheduler.phases import resolve_steps
from lightning_novograd.lr_scheduler.pytorch import is_closed_form
from lightning_novograd.registry import Interval

_UNITS = {"step": "optimizer steps", "epoch": "epochs"}


def leaves(spec: SchedulerSpec) -> Iterator[SchedulerSpec]:
    """The schedulers of `spec` that are not made of others; itself, if it is not."""
    if not spec.members:
        yield spec
    for member in spec.members:
        yield from leaves(member)


def own_interval(spec: SchedulerSpec) -> Interval:
    """How often `spec` is stepped where the block does not say: as often as its members are on their own.

    Raises:
        ConfigError: they differ.

    """
    intervals = {leaf.entry.interval for leaf in leaves(spec)}
    if len(intervals) > 1:
        counts = dict.fromkeys(f"{leaf.name} counts {_UNITS[leaf.entry.interval]}" for leaf in leaves(spec))
        problem = f"missing; {', '.join(counts)}: say step or epoch, and all of them count that"
        raise ConfigError(f"{spec.path}.interval", problem)
    return intervals.pop()


def check_members(spec: SchedulerSpec) -> None:
    """Refuse members that torch lets spoil each other's LRs, or that it cannot step.

    Raises:
        ConfigError: such a member, or a number of milestones that does not fit.

    """
    members, cls = spec.members, spec.entry.cls
    for member in members:
        check_members(member)
        if spec.is_sequence and issubclass(member.entry.cls, SequentialLR | ChainedScheduler):
            problem = f"torch cannot step a {member.name} inside of a {spec.name}"
            cure = "; write its members into the outer list" if member.is_sequence else ""
            raise ConfigError(f"{member.path}.name", problem + cure)
        if issubclass(cls, ChainedScheduler) and len(members) > 1 and issubclass(member.entry.cls, ClosedFormLR):
            problem = f"{member.name} sets the LR from the step alone, so it and the others would undo each other"
            cure = "give the policy its own warmup_steps, or let them follow each other in a SequentialLR"
            raise ConfigError(f"{member.path}.name", f"{problem}; {cure}")
    if spec.is_sequence and members:
        milestones = spec.args.get("milestones", [])
        if len(milestones) != len(members) - 1:
            problem = f"{milestones} for {len(members)} schedulers; each begins at one, but the first"
            for member in members:
                if member.takes_length:
                    problem = f"missing, and cannot be taken from the milestones: {problem}"
                    raise ConfigError(f"{member.path}.{member.entry.length}", problem)
            raise ConfigError(f"{spec.path}.milestones", problem)
        cycles = [member for member in members if issubclass(member.entry.cls, OneCycleLR)]
        if len(cycles) > 1:
            problem = "a second OneCycleLR; torch keeps their LRs in one place, so that the last one's count for all"
            raise ConfigError(f"{cycles[1].path}.name", problem)


def members_that_undo(spec: SchedulerSpec) -> list[str]:
    """Names of torch's schedulers in a ChainedScheduler that do not multiply, as the others there do."""
    alone = len(spec.members) < 2 or not issubclass(spec.entry.cls, ChainedScheduler)
    own = [] if alone else [member.name for member in spec.members if is_closed_form(member.entry.cls)]
    return own + [name for member in spec.members for name in members_that_undo(member)]


def member_lengths(spec: SchedulerSpec, length: int | None, explained: str) -> list[int | None]:
    """How long each member of `spec` lasts, where `spec` lasts `length`: from milestone to milestone, or all of it.

    Raises:
        ConfigError: nothing is left for the last one, which takes its length from that.

    """
    if not spec.is_sequence:
        return [length] * len(spec.members)
    starts = [0, *spec.args.get("milestones", [])]
    ends = [*starts[1:], length]
    lengths = [None if end is None else end - start for start, end in zip(starts, ends, strict=True)]
    last = spec.members[-1]
    if lengths[-1] is not None and lengths[-1] < 1 and last.needs_length:
        problem = f"{starts[1:]}: nothing is left for {last.name}, the schedule has length {length}"
        raise ConfigError(f"{spec.path}.milestones", problem + (f" ({explained})" if explained else ""))
    return lengths


def warmup_length(sched: SchedConfig, length: int | None, run: Callable[[], RunLength]) -> int:
    """Length of the warmup that `sched` asks for before its scheduler, in what the scheduler counts; 0: none.

    Args:
        sched: the block.
        length: of the whole schedule; None: unknown.
        run: asked where epochs are to be converted.

    Raises:
        ConfigError: it is not known, or does not fit.

    """
    if sched.warmup is None:
        return 0
    path = f"{sched.path}.{sched.warmup}"
    if sched.warmup_epochs is None:
        try:
            steps, _ = resolve_steps("warmup", sched.warmup_steps, sched.warmup_ratio, length)
        except ScheduleError as error:
            raise ConfigError(f"{sched.path}.{error.path}", error.problem) from error
        steps = steps or 0
    elif sched.interval == "epoch":
        steps = sched.warmup_epochs
    else:
        asked = run()
        steps = sched.warmup_epochs if asked.trial else steps_of_epochs(sched, "warmup_epochs", asked)[0]
    if length is not None and steps >= length:
        units = _UNITS[sched.interval]
        raise ConfigError(path, f"{steps} {units} of warmup do not fit a schedule of {length}; must end before it")
    return steps


def with_warmup(sched: SchedConfig, steps: int) -> SchedulerSpec:
    """`sched`'s scheduler after a linear warmup of so many steps, `base * (s+1) / (W+1)` as in NeMo's policies.

    Raises:
        ConfigError: torch cannot step it after another one.

    """
    own = SchedulerSpec(name=sched.name, args=sched.args, path=sched.path)
    if steps == 0:
        return own
    if issubclass(sched.entry.cls, ChainedScheduler):
        problem = (
            f"torch cannot step a {sched.name} after a warmup; put a LinearLR among its schedulers, which multiplies"
        )
        raise ConfigError(f"{sched.path}.{sched.warmup}", problem)
    warmup = SchedulerSpec(
        name="WarmupPolicy", args={"warmup_steps": steps, "max_steps": steps}, path=f"{sched.path}.{sched.warmup}"
    )
    members, milestones = [own], []
    if own.is_sequence:
        members, milestones = own.members, own.args["milestones"]
    milestones = [steps, *(steps + milestone for milestone in milestones)]
    return SchedulerSpec(
        name="SequentialLR", args={"schedulers": [warmup, *members], "milestones": milestones}, path=sched.path
    )


def check_begin(sched: SchedConfig, scheduler: Any, base_lrs: list[float]) -> None:
    """Refuse a warmup to the block's LR before a scheduler that begins at another one.

    Raises:
        ConfigError: it does.

    """
    first_lrs = [float(lr) for lr in scheduler._schedulers[1].get_last_lr()]
    for base_lr, lr in zip(base_lrs, first_lrs, strict=True):
        if not math.isclose(base_lr, lr, rel_tol=1e-6):
            problem = f"the warmup ends at the lr {base_lr:g}, where {sched.name} would begin at {lr:g}"
            raise ConfigError(f"{sched.path}.{sched.warmup}", f"{problem}; let both meet, or leave the warmup out")


def policies(scheduler: Any) -> Iterator[ClosedFormLR]:
    """The schedules of ours in `scheduler`."""
    if isinstance(scheduler, ClosedFormLR):
        yield scheduler
    for member in getattr(scheduler, "_schedulers", ()):
        yield from policies(member)


def lrs_of(optimizer: Optimizer) -> list[float]:
    """The LR that each param group starts from."""
    return [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]


def reset_lrs(optimizer: Optimizer, base_lrs: list[float]) -> None:
    """Let the next scheduler find the LRs that there were before any other was built."""
    for group, lr in zip(optimizer.param_groups, base_lrs, strict=True):
        assign(group, "lr", lr)
        assign(group, "initial_lr", lr)


@contextmanager
def first_member_begins(spec: SchedulerSpec, optimizer: Optimizer, base_lrs: list[float]) -> Iterator[None]:
    """While a SequentialLR is built, which starts its first member from `initial_lr`: the param groups' own.

    A OneCycleLR among the members puts an `initial_lr` of its own there, which it needs later.
    """
    if not spec.is_sequence:
        yield
        return
    kept = [float(group["initial_lr"]) for group in optimizer.param_groups]
    own = issubclass(spec.members[0].entry.cls, OneCycleLR)
    for group, lr in zip(optimizer.param_groups, kept if own else base_lrs, strict=True):
        assign(group, "initial_lr", lr)
    yield
    for group, lr in zip(optimizer.param_groups, kept, strict=True):
        assign(group, "initial_lr", lr)
