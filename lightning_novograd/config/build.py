"""`OptimConfig` -> optimizer, LARC around it, scheduler: tried on throw-away weights, then built with the model's.

Whatever a class refuses becomes a ConfigError with the key's path.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from lightning_novograd.config.arguments import entry_arguments
from lightning_novograd.config.composed import (
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
from lightning_novograd.config.group_lrs import keep_group_lrs
from lightning_novograd.config.length import Length, RunLength, refuse_longer_run, schedule_length
from lightning_novograd.config.schema import LARC_ARGUMENTS, RULE_KEYS, OptimConfig, SchedConfig, SchedulerSpec
from lightning_novograd.errors import ConfigError, choices
from lightning_novograd.log import rank_zero_logger
from lightning_novograd.optim.larc import LARC
from lightning_novograd.optim.param_groups import ParamGroupRule, build_param_groups
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
    groups = build_param_groups(module, config.param_groups, config.no_decay, config.path)
    params = groups if len(groups) > 1 or len(groups[0]) > 1 else groups[0]["params"]
    optimizer = new_optimizer(config.name, params, config.args, config.path)
    if config.larc is not None:
        optimizer = new_larc(optimizer, config.larc.args, f"{config.path}.larc")
    built: dict[str, Any] = {"optimizer": optimizer}
    if config.sched is not None:
        built["lr_scheduler"] = build_scheduler(config.sched, optimizer, max_steps)
    return built


def build_scheduler(sched: SchedConfig, optimizer: Optimizer, max_steps: Length = None) -> dict[str, Any]:
    """Lightning's `lr_scheduler` dict of `sched` on `optimizer`; `max_steps` as in `build`."""
    run = cache(lambda: RunLength.given(max_steps))
    length, source = schedule_length(sched, run) if sched.needs_length else (None, "")
    explained, whose = "", "schedule"
    if length is not None:
        whose = "schedule" if source.startswith(sched.path) else "run"
        explained = f"the {whose} has {length} {'optimizer steps' if sched.interval == 'step' else 'epochs'}: {source}"
    spec, scheduler = _new_schedule(sched, optimizer, length, run, explained)
    for undone in members_that_undo(spec):
        warnings.warn(
            f"{sched.path}: {undone} sets the LR from the step alone and does not multiply in a ChainedScheduler: it "
            "undoes what the schedulers before it did",
            UserWarning,
            stacklevel=2,
        )
    entry: dict[str, Any] = {
        "scheduler": scheduler,
        "interval": sched.interval,
        "frequency": sched.frequency,
        "strict": sched.strict,
        "reduce_on_plateau": sched.reduce_on_plateau,
    }
    if whose == "schedule":
        refuse_longer_run(sched, spec, scheduler, run)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])  # as all schedulers do but ReduceLROnPlateau
    if sched.monitor is not None:
        entry["monitor"] = sched.monitor
    if sched.log_name is not None:
        entry["name"] = sched.log_name
    after = f" after {spec.args['milestones'][0]} of warmup" if spec.name != sched.name else ""
    length_said = f"; {explained}" if explained else ""
    log.info("Schedule %s%s, stepped every %s%s", sched.name, after, sched.interval, length_said)
    return entry


def _new_schedule(
    sched: SchedConfig,
    optimizer: Optimizer,
    length: int | None,
    run: Callable[[], RunLength],
    explained: str = "",
) -> tuple[SchedulerSpec, Any]:
    """`sched`'s scheduler on `optimizer`, after its warmup if it has one, and what it was built from."""
    check_members(sched)
    base_lrs = lrs_of(optimizer)
    warmup = warmup_length(sched, length, run)
    spec = keep_group_lrs(with_warmup(sched, warmup), optimizer, base_lrs)
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
    optimizer = new_optimizer(config.name, [throw_away_weight()], config.args, config.path)
    for rule in config.param_groups:
        _check_rule(rule, config, optimizer)
    if config.no_decay and "weight_decay" not in optimizer.defaults:
        raise ConfigError(f"{config.path}.no_decay", f"{type(optimizer).__name__} has no weight decay")
    options_of_groups = _options_of_groups(config)
    if options_of_groups != [{}]:
        groups = [{"params": [throw_away_weight()], **options} for options in options_of_groups]
        optimizer = new_optimizer(config.name, groups, config.args, config.path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they will be shown when the real ones are built
        if config.larc is not None:
            new_larc(optimizer, config.larc.args, f"{config.path}.larc")
        if config.sched is not None:
            length = config.sched.max_steps or _SOME_LENGTH if config.sched.needs_length else None
            some_run = RunLength(_SOME_LENGTH, "some run", _SOME_LENGTH, steps_per_epoch=1)
            _new_schedule(config.sched, optimizer, length, lambda: some_run)


def throw_away_weight() -> nn.Parameter:
    """A weight for an optimizer that never steps."""
    return nn.Parameter(torch.zeros(1, 1))


def _check_rule(rule: ParamGroupRule, config: OptimConfig, optimizer: Optimizer) -> None:
    options = {key: value for key, value in rule.options.items() if key not in RULE_KEYS}
    for key in options:
        if key not in optimizer.defaults:
            arguments = entry_arguments(get_optimizer(config.name))
            per_group = [name for name, a in arguments.items() if name in optimizer.defaults and a.from_data]
            raise ConfigError(f"{rule.path}.{key}", f"unknown key{choices(key, [*per_group, *RULE_KEYS])}")
    # the constructor looks at its arguments; few optimizers look at the options of a group
    new_optimizer(config.name, [throw_away_weight()], {**config.args, **options}, rule.path)


def _options_of_groups(config: OptimConfig) -> list[Mapping[str, Any]]:
    """The param groups that a model may have, as many as the schedule lists values for.

    There is one group for what no rule wants and one per rule. In a model each may be split by `no_decay`, and some may
    be empty; how many there are is seen when the real optimizer is built.
    """
    options: list[Mapping[str, Any]] = [{}, *(rule.options for rule in config.param_groups)]
    most = 2 * len(options) if config.no_decay else len(options)
    wanted = max(_list_lengths(config.sched), default=0) if config.sched is not None else 0
    return (options * 2)[:wanted] if 1 <= wanted <= most else options


def _list_lengths(sched: SchedulerSpec) -> Iterator[int]:
    """Of the lists that have a value for each param group, in `sched` and its inner schedulers."""
    arguments = entry_arguments(sched.entry)
    for name, value in sched.args.items():
        if arguments[name].takes_schedulers:
            for inner in value:
                yield from _list_lengths(inner)
        elif arguments[name].per_group and isinstance(value, list):
            yield len(value)


def new_optimizer(name: str, groups: list[Any], args: Mapping[str, Any], path: str) -> Optimizer:
    """`name`'s optimizer of parameters or param groups `groups`.

    Raises:
        ConfigError: the class refuses an argument.

    """
    entry = get_optimizer(name, f"{path}.name")
    try:
        entry.check_arguments(args)  # once more, for a config that was not parsed
        return entry.cls(groups, **args)
    except ConfigError as error:
        raise ConfigError(_join(path, error.path), error.problem) from error
    except Exception as error:
        # the arguments are all that came from outside, so whatever it raises is about them
        where = _join(path, _culprit(entry.cls, args))
        raise ConfigError(where, f"{entry.name} refuses it: {_said(error)}") from error


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
            return entry.cls(optimizer, **args)
        args.update(members)
        with first_member_begins(spec, optimizer, base_lrs):
            return entry.cls(optimizer=optimizer, **args)  # ChainedScheduler has its schedulers first
    except ConfigError as error:
        raise ConfigError(_join(spec.path, error.path), error.problem + given) from error
    except Exception as error:
        # as in new_optimizer; torch's schedulers raise KeyError, TypeError, ZeroDivisionError and AssertionError too
        where = _join(spec.path, _named(args, error))
        raise ConfigError(where, f"{entry.name} refuses it: {_said(error)}{given}") from error


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


def new_larc(optimizer: Optimizer, args: Mapping[str, Any], path: str) -> Any:
    """LARC around `optimizer`.

    Raises:
        ConfigError: LARC refuses an argument.

    """
    try:
        return LARC(optimizer, **args)
    except Exception as error:
        # as in new_optimizer; LARC calls its arguments by their names in param groups, with a prefix
        problem = re.sub(rf"\blarc_({'|'.join(LARC_ARGUMENTS)})\b", r"\1", _said(error))
        raise ConfigError(_join(path, _named(args, problem)), f"LARC refuses it: {problem}") from error


def _culprit(cls: type, args: Mapping[str, Any]) -> str:
    """The argument that is refused on its own, or empty if none is (they do not go together)."""
    for name, value in args.items():
        try:
            cls([throw_away_weight()], **{name: value})
        except Exception:
            return name
    return ""


def _named(args: Iterable[str], problem: object) -> str:
    """The argument that an error message speaks of, or empty if that is none or several."""
    named = [name for name in args if re.search(rf"\b{name}s?\b", str(problem))]
    return named[0] if len(named) == 1 else ""


def _join(path: str, tail: str) -> str:
    return f"{path}.{tail}" if tail else path


def _said(error: Exception) -> str:
    text = str(error).split("\n")[0]
    return text if isinstance(error, ValueError | AssertionError) and text else f"{type(error).__name__}: {text}"
