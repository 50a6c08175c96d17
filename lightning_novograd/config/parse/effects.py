"""Arguments of an optimizer that would do nothing, or could only fail in its first step."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from lightning_novograd.config.arguments import entry_arguments
from lightning_novograd.config.schema import OptimizerSpec, RuleConfig, SchedConfig, SchedulerSpec
from lightning_novograd.errors import ConfigError
from lightning_novograd.lr_scheduler.pytorch import cycles_momentum
from lightning_novograd.registry import Entry, get_optimizer


def check_effects(block: OptimizerSpec, rules: Collection[RuleConfig], sched: SchedConfig | None) -> None:
    """Refuse arguments that have no effect for want of another one, and a step that autograd would run through.

    Args:
        block: the block's own optimizer; its arguments and the options of rules complete each other.
        rules: with options for it, or an optimizer of their own.
        sched: of all that has none of its own.

    Raises:
        ConfigError: `path` is the argument's.

    """
    entry, moved = get_optimizer(block.name), _moved_by(sched)
    options = [{*rule.options, *_moved_by(rule.sched)} for rule in rules if rule.optimizer is None]
    _check(entry, block.args, block.path, moved.union(*options))
    for rule in rules:
        of_rule = moved | _moved_by(rule.sched)
        if rule.optimizer is None:
            _check(entry, rule.options, rule.path, of_rule.union(block.args))
        else:
            _check(get_optimizer(rule.optimizer.name), rule.optimizer.args, rule.optimizer.path, of_rule)


def _check(entry: Entry, args: Mapping[str, Any], path: str, elsewhere: Collection[str]) -> None:
    """Check the `args` at `path`; `elsewhere` are arguments that the same parameters, or some of them, get too."""
    arguments = entry_arguments(entry)
    for name, needed in entry.needs.items():
        value = args.get(name)
        is_off = value is None or (not value and value == arguments[name].default)
        is_given = needed in {*args, *elsewhere} or needed not in arguments or arguments[needed].default
        if not is_off and not is_given:
            problem = f"{json.dumps(value)} has no effect without {needed}; give {needed} too, or remove it"
            raise ConfigError(f"{path}.{name}", problem)
    if args.get("differentiable"):
        problem = "true has autograd run through the step, which torch refuses for the parameters of a module"
        raise ConfigError(f"{path}.differentiable", f"{problem}; remove it")


def _moved_by(sched: SchedulerSpec | None) -> set[str]:
    """What a schedule sets beside the learning rate, at least for some of its time."""
    if sched is None:
        return set()
    cycles = cycles_momentum(sched.entry.cls) and sched.args.get("cycle_momentum", True)
    return {"momentum"} if cycles or any(map(_moved_by, sched.members)) else set()
