"""The optimizers of an optim block: one for each part of the param groups, made one, LARC around them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_novograd.config.refusals import join, named, said
from lightning_novograd.config.schema import (
    LARC_ARGUMENTS,
    LarcConfig,
    OptimConfig,
    OptimizerSpec,
    RuleConfig,
    SchedConfig,
    own_optimizer,
    own_sched,
)
from lightning_novograd.errors import ConfigError
from lightning_novograd.optim.composite import Composite, check_parts
from lightning_novograd.optim.larc import LARC
from lightning_novograd.optim.param_groups import ParamGroup
from lightning_novograd.optim.pytorch import check_precision
from lightning_novograd.ranges import NOT_NEGATIVE
from lightning_novograd.registry import get_optimizer

_FACTORS = {"lr_mult": "lr", "wd_mult": "weight_decay"}


@dataclass(frozen=True)
class Part:
    """Param groups with one optimizer object and one schedule, and that optimizer.

    Args:
        groups: of the module.
        sched: the rule's, or the block's.
        optimizer: the rule's, or the block's.
        lr: stated beside `sched`; LRs of the schedule's own are in proportion to it. None: the optimizer has none.

    """

    groups: Sequence[ParamGroup]
    sched: SchedConfig | None
    optimizer: Optimizer
    lr: float | None


def build_parts(config: OptimConfig, groups: Sequence[ParamGroup]) -> list[Part]:
    """The optimizers of `groups`: one for the groups of the block's own, one for each rule with a part of its own.

    Raises:
        ConfigError: a class refuses its arguments, or a group's.

    """
    members: dict[str, list[ParamGroup]] = {}
    for group in groups:
        is_part = isinstance(group.rule, RuleConfig) and group.rule.is_part
        members.setdefault(group.rule.path if group.rule is not None and is_part else config.path, []).append(group)
    return [_part(config, own) for own in members.values()]


def _part(config: OptimConfig, groups: Sequence[ParamGroup]) -> Part:
    rule = groups[0].rule
    spec = own_optimizer(rule) or config.optimizer
    defaults = new_optimizer(spec, [throw_away_weight()]).defaults
    options = [_options(group, spec, defaults) for group in groups]
    optimizer = new_optimizer(spec, options if len(options) > 1 or len(options[0]) > 1 else options[0]["params"])
    lr = learning_rate(config)
    if (sched := own_sched(rule)) is not None and rule is not None and "lr" in defaults:
        lr = float(rule.options.get("lr", defaults["lr"])) * (1.0 if rule.lr_mult is None else rule.lr_mult)
    return Part(groups, sched or config.sched, around(optimizer, spec.larc, spec.path), lr)


def _options(group: ParamGroup, spec: OptimizerSpec, defaults: Mapping[str, Any]) -> dict[str, Any]:
    rule = group.rule
    if rule is not None:
        for factor, option in _FACTORS.items():
            if getattr(rule, factor) is not None and option not in defaults:
                raise ConfigError(f"{rule.path}.{factor}", f"{spec.name} has no {option}")
    options = group.options(defaults)
    for factor, option in _FACTORS.items():
        if option in options:  # products of numbers that float32 holds may be beyond it
            whose = rule.path if rule is not None and getattr(rule, factor) is not None else spec.path
            NOT_NEGATIVE.check(f"{whose}.{factor if whose != spec.path else option}", options[option])
    return options


def whole(config: OptimConfig, parts: Sequence[Part]) -> Optimizer:
    """The parts' optimizers as one, under the block's LARC.

    Raises:
        ConfigError: one of several cannot be a part (LBFGS).

    """
    if len(parts) == 1:
        return around(parts[0].optimizer, config.larc, config.path)
    for part in parts:
        try:
            check_parts([part.optimizer])
        except (TypeError, ValueError) as error:
            spec = own_optimizer(part.groups[0].rule) or config.optimizer
            problem = f"{spec.name} cannot be one of several optimizers: {said(error)}"
            raise ConfigError(f"{spec.path}.name", problem) from error
    return around(Composite([part.optimizer for part in parts]), config.larc, config.path)


def around(optimizer: Optimizer, larc: LarcConfig | None, path: str) -> Optimizer:
    """The optimizer, under LARC if there is one; `path` is the optimizer's."""
    return optimizer if larc is None else new_larc(optimizer, larc.args, f"{path}.larc")


def throw_away_weight() -> nn.Parameter:
    """A weight for an optimizer that never steps; a block parses alike whatever the default dtype is."""
    return nn.Parameter(torch.zeros(1, 1, dtype=torch.float32))


def new_optimizer(spec: OptimizerSpec, groups: list[Any]) -> Optimizer:
    """The optimizer of `spec` for parameters or param groups `groups`.

    Raises:
        ConfigError: the class refuses an argument, or the parameters' precision makes a 0 of it.

    """
    entry = get_optimizer(spec.name, f"{spec.path}.name")
    try:
        entry.check_arguments(spec.args)  # once more, for a config that was not parsed
        optimizer = entry.cls(groups, **spec.args)
        check_precision(optimizer)
        return optimizer
    except ConfigError as error:
        raise ConfigError(join(spec.path, error.path), error.problem) from error
    except Exception as error:
        # the arguments are all that came from outside, so whatever it raises is about them
        where = join(spec.path, _culprit(entry.cls, spec.args))
        raise ConfigError(where, f"{entry.name} refuses it: {said(error)}") from error


def learning_rate(config: OptimConfig) -> float | None:
    """The lr of the block, or of its class where the block has none; None: its optimizer knows no lr."""
    lr = new_optimizer(config.optimizer, [throw_away_weight()]).defaults.get("lr")
    return None if lr is None else float(lr)


def new_larc(optimizer: Optimizer, args: Mapping[str, Any], path: str) -> Any:
    """LARC around `optimizer`.

    Raises:
        ConfigError: LARC refuses an argument.

    """
    try:
        return LARC(optimizer, **args)
    except Exception as error:
        # as in new_optimizer; LARC calls its arguments by their names in param groups, with a prefix
        problem = re.sub(rf"\blarc_({'|'.join(LARC_ARGUMENTS)})\b", r"\1", said(error))
        raise ConfigError(join(path, named(args, problem)), f"LARC refuses it: {problem}") from error


def _culprit(cls: type, args: Mapping[str, Any]) -> str:
    """The argument that is refused on its own, or empty if none is (they do not go together)."""
    for name, value in args.items():
        try:
            cls([throw_away_weight()], **{name: value})
        except Exception:
            return name
    return ""
