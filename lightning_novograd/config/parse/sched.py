"""Parsing of `optim.sched` and of the schedules of rules."""

from collections.abc import Iterable, Mapping
from typing import Any

from lightning_novograd.config.arguments import Argument, entry_arguments
from lightning_novograd.config.parse import nemo
from lightning_novograd.config.parse.block import Block, check_arguments, in_range
from lightning_novograd.config.schedules.composed import own_interval
from lightning_novograd.config.schedules.group_lrs import check_lr_is_said, keep_momentum
from lightning_novograd.config.schema import SCHED_KEYS, WARMUP_KEYS, RuleConfig, SchedConfig, SchedulerSpec
from lightning_novograd.errors import ConfigError
from lightning_novograd.ranges import Range
from lightning_novograd.registry import Entry, get_scheduler

_PACE = Range("above 0, or null for one step per batch", lambda value: value > 0)


def sched_of_block(value: Any, args: Mapping[str, Any], rules: Iterable[RuleConfig], path: str) -> SchedConfig | None:
    """The schedule, which does not overrule what the rest of the block says.

    Args:
        value: the block of the schedule; None: there is none.
        args: of the optimizer that it drives.
        rules: of the block, if it is the block's schedule.
        path: where the config has it.

    Raises:
        ConfigError: as `parse_block`.

    """
    if value is None:
        return None
    sched = _sched(value, path)
    of_rules = [{*rule.options, *(rule.optimizer.args if rule.optimizer is not None else ())} for rule in rules]
    said = {*args}.union(*of_rules)
    check_lr_is_said(sched, args, rules_set_lr=any("lr" in keys for keys in of_rules))
    return keep_momentum(sched) if {"momentum", "betas"} & said else sched


def _sched(value: Any, path: str) -> SchedConfig:
    block = Block.of(value, path)
    entry = get_scheduler(block.take_name("scheduler"), f"{path}.name")
    legacy = block.values.get("args") is not None
    block.unpack_legacy_args(entry.name)
    block.rename(nemo.sched_aliases(entry.name))
    nemo.drop_runtime_keys(block.values, block.paths, path, legacy=legacy)
    has_warmup = not WARMUP_KEYS.keys().isdisjoint(entry_arguments(entry))
    fields, args = _scheduler_args(block, entry, SCHED_KEYS if has_warmup else {**SCHED_KEYS, **WARMUP_KEYS})
    spec = SchedulerSpec(name=entry.name, args=args, path=path)
    nemo.warn_of_interval(entry.name, fields["interval"], path)
    sched = SchedConfig(
        name=entry.name,
        args=args,
        path=path,
        max_steps=_length(fields["max_steps"], f"{path}.max_steps"),
        max_epochs=_length(fields["max_epochs"], f"{path}.max_epochs"),
        interval=fields["interval"] or own_interval(spec),
        frequency=fields["frequency"],
        monitor=fields["monitor"],
        strict=fields["strict"],
        steps_per_batch=in_range(_PACE, fields["steps_per_batch"], f"{path}.steps_per_batch"),
        log_name=fields["log_name"],
        **{key: fields.get(key) for key in WARMUP_KEYS},
    )
    _check_warmup(sched)
    _check_sched(sched, fields["reduce_on_plateau"])
    return sched


def _scheduler_args(
    block: Block, entry: Entry, fields: Mapping[str, Argument]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our own keys and the scheduler's arguments; schedulers inside of schedulers are parsed in their turn."""
    arguments = entry_arguments(entry)
    arguments.pop("last_epoch", None)
    if block.values.pop("last_epoch", -1) not in (-1, None):
        problem = "only -1; a run is continued from its checkpoint, trainer.fit(..., ckpt_path=...)"
        raise ConfigError(block.paths["last_epoch"], problem)
    inner = {}
    for key in [key for key, argument in arguments.items() if argument.takes_schedulers and key in block.values]:
        values = block.values.pop(key)
        if not isinstance(values, list) or not values:
            raise ConfigError(block.paths[key], f"expected a list of schedulers, got {values!r}")
        inner[key] = [_inner_scheduler(value, f"{block.paths[key]}[{index}]") for index, value in enumerate(values)]
        del arguments[key]
    if entry.length is not None and entry.length not in fields and block.values.get(entry.length, 0) is None:
        del block.values[entry.length]
    ours, theirs = block.split(fields, arguments, filled_in=entry.length)
    check_arguments(entry, theirs, block.path)
    return ours, {**theirs, **inner}


def _inner_scheduler(value: Any, path: str) -> SchedulerSpec:
    block = Block.of(value, path)
    entry = get_scheduler(block.take_name("scheduler"), f"{path}.name")
    block.unpack_legacy_args(entry.name)
    return SchedulerSpec(name=entry.name, args=_scheduler_args(block, entry, {})[1], path=path)


def _check_warmup(sched: SchedConfig) -> None:
    given = [key for key in WARMUP_KEYS if getattr(sched, key) is not None]
    if not given:
        return
    key, value, path = given[0], getattr(sched, given[0]), f"{sched.path}.{given[0]}"
    if len(given) > 1:
        raise ConfigError(f"{sched.path}.{given[1]}", f"{key} is given too; give one")
    if value < 0 or (key == "warmup_ratio" and value > 1):
        must = "in 0..1" if key == "warmup_ratio" else "at least 0"
        raise ConfigError(path, f"{value} is out of range; must be {must}")
    if sched.reduce_on_plateau:
        raise ConfigError(path, f"{sched.name} follows a metric and cannot come after a warmup")
    if key == "warmup_steps" and sched.interval == "epoch":
        problem = f"{value} counts optimizer steps, but {sched.name} is stepped once per epoch"
        cure = "warmup_epochs, or interval: step, in which its other arguments count optimizer steps too"
        raise ConfigError(path, f"{problem}; give {cure}")


def _check_sched(sched: SchedConfig, said_plateau: bool | None) -> None:
    """What no single key shows."""
    entry, path = sched.entry, sched.path
    if said_plateau is not None and said_plateau != sched.reduce_on_plateau:
        does = "does" if sched.reduce_on_plateau else "does not"
        raise ConfigError(f"{path}.reduce_on_plateau", f"{said_plateau}, but {sched.name} {does} watch a metric")
    if sched.reduce_on_plateau and sched.monitor is None:
        raise ConfigError(f"{path}.monitor", f"missing; {sched.name} needs the name of a logged metric")
    if sched.frequency < 1:
        raise ConfigError(f"{path}.frequency", f"{sched.frequency} is out of range; must be at least 1")
    if sched.max_steps is not None and sched.max_epochs is not None:
        problem = f"{sched.max_epochs}, but max_steps is {sched.max_steps}; give one"
        raise ConfigError(f"{path}.max_epochs", problem)
    length = "max_steps" if sched.max_steps is not None else "max_epochs" if sched.max_epochs is not None else None
    if length is not None and not sched.needs_length:
        own = f"its {entry.length} is given" if entry.length else f"{sched.name} has no length"
        raise ConfigError(f"{path}.{length}", f"{getattr(sched, length)} has no effect: {own}; remove it")
    if sched.max_steps is not None and sched.interval == "epoch":
        problem = f"{sched.max_steps} counts optimizer steps, but {sched.name} is stepped once per epoch"
        raise ConfigError(f"{path}.max_steps", f"{problem}; give max_epochs or interval: step")
    if sched.frequency > 1 and sched.needs_length:
        problem = f"{sched.frequency}, but {sched.name} has the length of the run and steps every {sched.interval}"
        raise ConfigError(f"{path}.frequency", f"{problem}; must be 1")


def _length(value: int | None, path: str) -> int | None:
    if value is None or value == -1:  # NeMo's "computed at runtime"
        return None
    if value < 1:
        raise ConfigError(path, f"{value} is out of range; must be at least 1, or null for the length of the run")
    return value
