"""Schedulers with LRs of their own (OneCycleLR, CyclicLR, T5's, floors) over param groups that have different ones."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_novograd.config.schema import SchedulerSpec
from lightning_novograd.errors import ConfigError
from lightning_novograd.lr_scheduler.pytorch import MOMENTUM_CYCLE, cycles_momentum, own_floor, own_lrs

Spec = TypeVar("Spec", bound=SchedulerSpec)


def keep_group_lrs(
    spec: SchedulerSpec, optimizer: Optimizer, base_lrs: list[float], stated_lr: float | None
) -> SchedulerSpec:
    """`spec` with a list for each LR of its own: the number that is written, times the group's LR over the stated one.

    The least LR of a torch scheduler, which is for every group, is multiplied with the factors of groups alone, as our
    schedules do it themselves.

    Args:
        spec: what will be built.
        optimizer: what it drives.
        base_lrs: of its param groups.
        stated_lr: of the block, or of the rule whose schedule it is; None: the first group's.

    Raises:
        ConfigError: the LRs of groups differ and the scheduler cannot tell them apart, or overrules an LR of 0, or
            would lift an LR to its least one.

    """
    if not getattr(spec.entry.cls, "uses_base_lr", True):
        _check_unused(spec, base_lrs)
    block_lr = base_lrs[0] if stated_lr is None else stated_lr
    args: dict[str, Any] = {}
    for name, value in spec.args.items():
        if name == own_floor(spec.entry.cls) and isinstance(value, int | float):
            value = _floor(
                spec, name, value, [group.get("lr_factor", 1.0) for group in optimizer.param_groups], base_lrs
            )
        if name in own_lrs(spec.entry.cls) and isinstance(value, int | float) and {*base_lrs} != {block_lr}:
            if block_lr == 0:
                problem = f"{value:g}, in proportion to the lr of each param group, but the block's lr is 0"
                raise ConfigError(f"{spec.path}.{name}", f"{problem}; give a list, a value for each group")
            value = [value * (lr / block_lr) for lr in base_lrs]
        elif isinstance(value, list):
            value = [
                keep_group_lrs(v, optimizer, base_lrs, stated_lr) if isinstance(v, SchedulerSpec) else v for v in value
            ]
        args[name] = value
    return replace(spec, args=args)


def _floor(
    spec: SchedulerSpec, name: str, value: float, factors: list[float], base_lrs: list[float]
) -> float | list[float]:
    """The least LR of each group, or of all where no group has a factor."""
    if {*factors} == {1.0}:
        return value
    if issubclass(spec.entry.cls, ReduceLROnPlateau):
        return [value * factor for factor in factors]
    for index, (lr, factor) in enumerate(zip(base_lrs, factors, strict=True)):
        if factor != 1 and lr < value:
            problem = (
                f"{value:g} is above the learning rate of param group {index}, {lr:g}, which {spec.name} would lift"
            )
            raise ConfigError(f"{spec.path}.{name}", f"{problem} to it; CosineAnnealing lowers its min_lr as well")
    return value


def _check_unused(spec: SchedulerSpec, base_lrs: list[float]) -> None:
    if 0.0 in base_lrs:
        problem = f"{spec.name} sets an absolute LR, and param group {base_lrs.index(0.0)} would train although its lr"
        raise ConfigError(f"{spec.path}.name", f"{problem} is 0; freeze its parameters instead")
    if len({*base_lrs}) > 1:
        problem = f"{spec.name} sets one absolute LR for all param groups, whose lr are {_listed(base_lrs)}"
        raise ConfigError(f"{spec.path}.name", f"{problem}; InverseSquareRootAnnealing keeps them apart")


def check_lr_is_said(sched: SchedulerSpec, args: Mapping[str, Any], rules_set_lr: bool) -> None:
    """Refuse LRs in proportion to the block's where the block has none and the optimizer's default would stand for it.

    Raises:
        ConfigError: rules set an `lr`, the block does not, and the scheduler has one number for all groups.

    """
    for member in sched.members:
        check_lr_is_said(member, args, rules_set_lr)
    for name in own_lrs(sched.entry.cls):
        if rules_set_lr and "lr" not in args and isinstance(sched.args.get(name), int | float):
            problem = (
                f"{sched.args[name]:g}, in proportion to the lr of each param group, but the block itself has none"
            )
            raise ConfigError(f"{sched.path}.{name}", f"{problem}; give it, or a list here, a value for each group")


def keep_momentum(spec: Spec) -> Spec:
    """`spec` without cycles of the momentum that the block does not ask for.

    For a block that sets `momentum` or `betas`: torch's OneCycleLR and CyclicLR replace them by default.
    """
    args = {
        name: [keep_momentum(v) if isinstance(v, SchedulerSpec) else v for v in value]
        if isinstance(value, list)
        else value
        for name, value in spec.args.items()
    }
    if cycles_momentum(spec.entry.cls) and not {*MOMENTUM_CYCLE} & args.keys():
        args["cycle_momentum"] = False
    return replace(spec, args=args)


def _listed(lrs: list[float]) -> str:
    return ", ".join(f"{lr:g}" for lr in dict.fromkeys(lrs))
