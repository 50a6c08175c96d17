"""`OptimConfig` -> optimizer, LARC around it, scheduler: tried on throw-away weights, then built with the model's.

Whatever a class refuses becomes a ConfigError with the key's path.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import cycle, islice
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from lightning_novograd.config.arguments import entry_arguments
from lightning_novograd.config.gradients import check_gradients
from lightning_novograd.config.length import Length, RunLength, refuse_longer_run, schedule_length
from lightning_novograd.config.optimizers import (
    Part,
    build_parts,
    learning_rate,
    new_optimizer,
    throw_away_weight,
    whole,
)
from lightning_novograd.config.refusals import join, named, said
from lightning_novograd.config.report import group_table
from lightning_novograd.config.schedules.composed import (
    check_begin,
    check_members,
    first_member_begins,
    lrs_of,
    member_lengths,
    members_that_undo,
    policies,
    reset_lrs,
    warmup_length,
    with_warmup,
)
from lightning_novograd.config.schedules.group_lrs import keep_group_lrs
from lightning_novograd.config.schema import (
    RULE_KEYS,
    OptimConfig,
    OptimizerSpec,
    SchedConfig,
    SchedulerSpec,
    own_optimizer,
    own_sched,
)
from lightning_novograd.errors import ConfigError, choices
from lightning_novograd.log import rank_zero_logger
from lightning_novograd.lr_scheduler.parts import parts_scheduler
from lightning_novograd.optim.param_groups import ParamGroup, ParamGroupRule, build_param_groups
from lightning_novograd.optim.wrapped import full_name
from lightning_novograd.ranges import BEYOND_FLOAT32, in_float32
from lightning_novograd.registry import get_optimizer

log = rank_zero_logger(__name__)

# Stands for the length of the run while only the other arguments can be tried
_SOME_LENGTH = 10**9


def build(config: OptimConfig, module: nn.Module, max_steps: Length = None) -> dict[str, Any]:
    """Optimizer and scheduler of `config`, as Lightning's `configure_optimizers` returns them.

    Args:
        config: what to build.
        module: whose parameters are optimized.
        max_steps: length of the run in optimizer steps, for schedules whose config does not set one. A function is
            called at most once, after everything else is built, and only if the length is needed.

    Raises:
        ConfigError: the config does not fit the module or the length of the run.

    """
    built = _build_of_parts(config, parts_of(config, module), max_steps)
    _log_groups(built["optimizer"])
    return built


def build_optimizer(config: OptimConfig, module: nn.Module) -> tuple[Optimizer, Callable[[Length], dict[str, Any]]]:
    """The optimizer alone, for hosts that know the length of the run only once they have it.

    Returns:
        The optimizer, and a function of that length (`max_steps` of `build`) that returns the scheduler's dict as in
        `build`, an empty one for a block without a schedule.

    """
    parts = parts_of(config, module)
    optimizer = whole(config, parts)
    _log_groups(optimizer)
    return optimizer, partial(_build_schedulers, config, parts, optimizer)


def parts_of(config: OptimConfig, module: nn.Module) -> list[Part]:
    """The optimizers of the module's parameters, which `whole` makes one; exceptions as in `build`."""
    groups = build_param_groups(module, config.param_groups, config.no_decay, config.path, config.layer_decay)
    parts = build_parts(config, groups)
    check_gradients(config, parts, module)
    return parts


def _log_groups(optimizer: Optimizer) -> None:
    if len(optimizer.param_groups) > 1:
        log.info("Param groups:\n%s", group_table(optimizer))


def build_of_groups(config: OptimConfig, groups: Sequence[ParamGroup], max_steps: Length = None) -> dict[str, Any]:
    """What `build` returns, of param groups that need not be a model's (`some_groups`)."""
    return _build_of_parts(config, build_parts(config, groups), max_steps)


def _build_of_parts(config: OptimConfig, parts: Sequence[Part], max_steps: Length) -> dict[str, Any]:
    built: dict[str, Any] = {"optimizer": whole(config, parts)}
    if lr_scheduler := _build_schedulers(config, parts, built["optimizer"], max_steps):
        built["lr_scheduler"] = lr_scheduler
    if config.clips:
        built["clip_gradients"] = partial(clip_gradients, config, built["optimizer"])
    return built


def clip_gradients(config: OptimConfig, optimizer: Optimizer) -> Tensor | None:
    """Clip the gradients as the block says, before `optimizer.step()` and, under a GradScaler, after `unscale_`.

    Returns:
        The norm of all gradients before they were clipped, with `grad_clip_norm`.

    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if config.grad_clip_norm is not None:
        return nn.utils.clip_grad_norm_(params, config.grad_clip_norm)
    if config.grad_clip_value is not None:
        nn.utils.clip_grad_value_(params, config.grad_clip_value)
    return None


def _build_schedulers(
    config: OptimConfig, parts: Sequence[Part], optimizer: Optimizer, max_steps: Length
) -> dict[str, Any]:
    """One scheduler on the whole optimizer, or one of those of its parts where a rule has its own; {} without any."""
    if config.sched is not None and not _has_own_schedules(config):
        return build_scheduler(config.sched, optimizer, max_steps, learning_rate(config))
    run = cache(lambda: RunLength.given(max_steps))
    entries = [build_scheduler(part.sched, part.optimizer, run, part.lr) for part in parts if part.sched is not None]
    if not entries or config.stepped is None:
        return {}
    return _entry(config.stepped, parts_scheduler(optimizer, [entry["scheduler"] for entry in entries]))


def build_scheduler(
    sched: SchedConfig, optimizer: Optimizer, max_steps: Length = None, lr: float | None = None
) -> dict[str, Any]:
    """Lightning's `lr_scheduler` dict of `sched` on `optimizer`; `max_steps` as in `build`, `lr` as in `Part`."""
    run = cache(lambda: RunLength.given(max_steps))
    length, source = schedule_length(sched, run) if sched.needs_length else (None, "")
    explained, whose = "", "schedule"
    if length is not None:
        whose = "schedule" if source.startswith(sched.path) else "run"
        explained = f"the {whose} has {length} {'optimizer steps' if sched.interval == 'step' else 'epochs'}: {source}"
    spec, scheduler = _new_schedule(sched, optimizer, lr, length, run, explained)
    for undone in members_that_undo(spec):
        warnings.warn(
            f"{sched.path}: {undone} sets the LR from the step alone and does not multiply in a ChainedScheduler: it "
            "undoes what the schedulers before it did",
            UserWarning,
            stacklevel=2,
        )
    if whose == "schedule":
        refuse_longer_run(sched, spec, scheduler, run)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])  # as all schedulers do but ReduceLROnPlateau
    after = f" after {spec.args['milestones'][0]} of warmup" if spec.name != sched.name else ""
    length_said = f"; {explained}" if explained else ""
    log.info("Schedule %s%s, stepped every %s%s", sched.name, after, sched.interval, length_said)
    return _entry(sched, scheduler)


def _entry(sched: SchedConfig, scheduler: Any) -> dict[str, Any]:
    """Lightning's `lr_scheduler` dict of a scheduler that is stepped as `sched` says."""
    entry: dict[str, Any] = {
        "scheduler": scheduler,
        "interval": sched.interval,
        "frequency": sched.frequency,
        "strict": sched.strict,
        "reduce_on_plateau": sched.reduce_on_plateau,
    }
    if sched.monitor is not None:
        entry["monitor"] = sched.monitor
    if sched.log_name is not None:
        entry["name"] = sched.log_name
    return entry


def _new_schedule(
    sched: SchedConfig,
    optimizer: Optimizer,
    lr: float | None,
    length: int | None,
    run: Callable[[], RunLength],
    explained: str = "",
) -> tuple[SchedulerSpec, Any]:
    """`sched`'s scheduler on `optimizer`, after its warmup if it has one, and what it was built from."""
    check_members(sched)
    base_lrs = lrs_of(optimizer)
    warmup = warmup_length(sched, length, run)
    spec = keep_group_lrs(with_warmup(sched, warmup), optimizer, base_lrs, lr)
    scheduler = new_scheduler(spec, optimizer, length, explained)
    if warmup:
        check_begin(sched, scheduler, base_lrs)
    for policy in policies(scheduler):
        policy.steps_apart = sched.frequency if sched.interval == "step" else None
    return spec, scheduler


def dry_build(config: OptimConfig) -> None:
    """Build everything once on throw-away weights, to find what only the constructors know: before there is a model.

    Raises:
        ConfigError: a constructor refuses an argument, or an option is not one of a param group.

    """
    optimizers = [new_optimizer(spec, [throw_away_weight()]) for spec in config.optimizers]
    for rule in config.param_groups:
        _check_rule(rule, config, optimizers[0])
    if config.no_decay and not any("weight_decay" in optimizer.defaults for optimizer in optimizers):
        raise ConfigError(f"{config.path}.no_decay", f"{type(optimizers[0]).__name__} has no weight decay")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they will be shown when the real ones are built
        parts = build_parts(config, some_groups(config))
        optimizer = whole(config, parts)
        if config.ema is not None and hasattr(optimizer, "eval"):
            problem = f"{full_name(optimizer)} averages the weights itself; give one of both"
            raise ConfigError(f"{config.path}.ema", problem)
        if not _has_own_schedules(config):
            parts = [Part([], config.sched, optimizer, learning_rate(config))]
        some_run = RunLength(_SOME_LENGTH, "some run", _SOME_LENGTH, steps_per_epoch=1)
        schedulers = []
        for part in parts:
            if part.sched is not None:
                length = part.sched.max_steps or _SOME_LENGTH if part.sched.needs_length else None
                schedulers.append(_new_schedule(part.sched, part.optimizer, part.lr, length, lambda: some_run)[1])
        if _has_own_schedules(config):
            parts_scheduler(optimizer, schedulers)


def _check_rule(rule: ParamGroupRule, config: OptimConfig, optimizer: Optimizer) -> None:
    if own_optimizer(rule) is not None:
        return
    options = {key: value for key, value in rule.options.items() if key not in RULE_KEYS}
    for key in options:
        if key not in optimizer.defaults:
            arguments = entry_arguments(get_optimizer(config.name))
            per_group = [name for name, a in arguments.items() if name in optimizer.defaults and a.from_data]
            raise ConfigError(f"{rule.path}.{key}", f"unknown key{choices(key, [*per_group, *RULE_KEYS])}")
    # the constructor looks at its arguments; few optimizers look at the options of a group
    tried = OptimizerSpec(name=config.name, args={**config.args, **options}, path=rule.path)
    new_optimizer(tried, [throw_away_weight()])


def some_groups(config: OptimConfig) -> list[ParamGroup]:
    """Param groups such as a model may have, of throw-away weights, as many as the schedule lists values for.

    There is one group for what no rule wants and one per rule. In a model each may be split, and some may be empty; how
    many there are is seen when the real optimizer is built.
    """
    rules = [None, *config.param_groups]
    most = 2 * len(rules) if config.no_decay else len(rules)
    wanted = max(_list_lengths(config.sched), default=0) if config.sched is not None else 0
    if wanted >= 1 and (wanted <= most or config.layer_decay is not None):
        rules = list(islice(cycle(rules), wanted))
    names = [rule.label if rule else "default" for rule in rules] if len(rules) > 1 else [""]
    return [ParamGroup([throw_away_weight()], rule, name=name) for rule, name in zip(rules, names, strict=True)]


def _has_own_schedules(config: OptimConfig) -> bool:
    return any(own_sched(rule) is not None for rule in config.param_groups)


def _list_lengths(sched: SchedulerSpec) -> Iterator[int]:
    """Of the lists that have a value for each param group, in `sched` and its inner schedulers."""
    arguments = entry_arguments(sched.entry)
    for name, value in sched.args.items():
        if arguments[name].takes_schedulers:
            for inner in value:
                yield from _list_lengths(inner)
        elif arguments[name].per_group and isinstance(value, list):
            yield len(value)


def new_scheduler(spec: SchedulerSpec, optimizer: Optimizer, length: int | None = None, explained: str = "") -> Any:
    """`spec`'s scheduler on `optimizer`.

    Args:
        spec: class and arguments.
        optimizer: what it drives.
        length: optimizer steps of the run (epochs, for a scheduler stepped once per epoch), where `spec.needs_length`.
        explained: what `length` is and where it came from, for error messages.

    Raises:
        ConfigError: the class refuses an argument.

    """
    entry = spec.entry
    args, given = dict(spec.args), f" ({explained})" if explained else ""
    if spec.takes_length and length is not None:
        args[str(entry.length)] = length
    base_lrs, members = lrs_of(optimizer), _new_members(spec, optimizer, length, explained)
    try:
        entry.check_arguments(args)  # the length among them
        if not members:
            scheduler = entry.cls(optimizer, **args)
        else:
            args.update(members)
            with first_member_begins(spec, optimizer, base_lrs):
                scheduler = entry.cls(optimizer=optimizer, **args)  # ChainedScheduler has its schedulers first
        _check_lrs(optimizer)
        return scheduler
    except ConfigError as error:
        raise ConfigError(join(spec.path, error.path), error.problem + given) from error
    except Exception as error:
        # as in new_optimizer; torch's schedulers raise KeyError, TypeError, ZeroDivisionError and AssertionError too
        where = join(spec.path, named(args, error))
        raise ConfigError(where, f"{entry.name} refuses it: {said(error)}{given}") from error


def _check_lrs(optimizer: Optimizer) -> None:
    """Refuse learning rates that a schedule begins with and float32 does not hold, as of a tiny divisor."""
    for index, group in enumerate(optimizer.param_groups):
        if not isinstance(group["lr"], Tensor) and math.isinf(in_float32(group["lr"])):
            raise ConfigError(
                "",
                f"it begins with a learning rate of {group['lr']:.6g} in param group {index}, which {BEYOND_FLOAT32}",
            )


def _new_members(spec: SchedulerSpec, optimizer: Optimizer, length: int | None, explained: str) -> dict[str, list[Any]]:
    """The schedulers that `spec`'s scheduler is made of, by its argument; those of a sequence do not see each other."""
    if not spec.members:
        return {}
    base_lrs, lengths = lrs_of(optimizer), member_lengths(spec, length, explained)
    order = list(range(len(lengths)))
    if spec.is_sequence:  # OneCycleLR last, which leaves in the param groups what it will need
        order.sort(key=lambda index: issubclass(spec.members[index].entry.cls, OneCycleLR))
    built: dict[int, Any] = {}
    for index in order:
        if spec.is_sequence:
            reset_lrs(optimizer, base_lrs)
        built[index] = new_scheduler(spec.members[index], optimizer, lengths[index], explained)
    in_order = (built[index] for index in sorted(built))
    arguments = entry_arguments(spec.entry)
    return {
        name: [next(in_order) for _ in value] for name, value in spec.args.items() if arguments[name].takes_schedulers
    }
