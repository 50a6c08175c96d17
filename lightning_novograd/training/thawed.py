"""Param groups that join in mid-run: fine-tuning callbacks thaw layers and know no rules of the optim block."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_novograd.config.optimizers import new_optimizer, throw_away_weight
from lightning_novograd.config.schema import OptimConfig, RuleConfig, own_optimizer
from lightning_novograd.config.several import submodule
from lightning_novograd.errors import ConfigError
from lightning_novograd.log import rank_zero_logger
from lightning_novograd.lr_scheduler.pytorch import bound_to_groups
from lightning_novograd.optim.composite.groups import PART
from lightning_novograd.optim.param_groups import ParamGroup, groups_of_added
from lightning_novograd.optim.wrapped import all_in
from lightning_novograd.optim.wrappers import plain_name

log = rank_zero_logger(__name__)

# The name of the optimizer that has the parameters of the block, or of a rule with a part of its own, by its path
Labels = Mapping[str, str]


def thawed_groups(
    config: OptimConfig, module: nn.Module, params: list[nn.Parameter], labels: Labels
) -> list[dict[str, Any]]:
    """Param groups for `optimizer.add_param_group`, with the options that the block has for these parameters.

    Args:
        config: the block.
        module: that has them.
        params: parameters that were frozen when the optimizer was built.
        labels: from `follow_rules`, if there is an optimizer yet.

    """
    return [_options(config, group, labels) for group in _groups(config, module, params)]


@contextmanager
def parts_of_frozen(configs: Iterable[OptimConfig], module: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Inside, no part of an optimizer is left out because all its parameters are frozen: one of them is not.

    Yields:
        These parameters, which `leave_out` takes out of the optimizers that were built.

    """
    thawed: list[nn.Parameter] = []
    for config in configs:
        part_of: dict[str, list[nn.Parameter]] = {}
        inner = submodule(module, config)
        trains = any(parameter.requires_grad for parameter in inner.parameters())  # else there is nothing to optimize
        if trains and any(isinstance(rule, RuleConfig) and rule.is_part for rule in config.param_groups):
            for group in _groups(config, inner, list(inner.parameters())):
                part_of.setdefault(_part(config, group), []).extend(group.params)
        for path, params in part_of.items():
            if not any(parameter.requires_grad for parameter in params):
                log.info("%s: all its parameters are frozen; it has an optimizer for those that are thawed", path)
                thawed.append(params[0])
    try:
        for parameter in thawed:
            parameter.requires_grad_(True)
        yield thawed
    finally:
        for parameter in thawed:
            parameter.requires_grad_(False)


def leave_out(optimizer: Optimizer, params: list[nn.Parameter]) -> None:
    """Take parameters out of an optimizer that has made no step; their groups stay."""
    left_out = set(params)
    for group in optimizer.param_groups:
        group["params"][:] = [parameter for parameter in group["params"] if parameter not in left_out]
    for inner in all_in(optimizer):
        for parameter in left_out.intersection(inner.state):
            del inner.state[parameter]


def follow_rules(optimizer: Optimizer, config: OptimConfig, module: nn.Module, schedule: Any = None) -> Labels:
    """Have param groups that are added to `optimizer` take what the block says of their parameters.

    They join the optimizer that the block has for them, as several groups if it has several. Where all parameters of
    one fall under one rule, the group gets that rule's options, as far as it has none of its own. Where they do not, it
    gets none, since whoever added it may change its LR later on, and a warning names the rules.

    Args:
        optimizer: built of `config`, with parameters in each of its parts.
        config: the block.
        module: that has the parameters.
        schedule: the LR scheduler that drives `optimizer`; one that cannot drive groups that are added refuses them
            with a ConfigError, where torch's would fail at its next step.

    Returns:
        How its parts are called.

    """
    add = optimizer.add_param_group
    labels = {}
    for group in optimizer.param_groups:
        if PART in group:
            labels[_part(config, _groups(config, module, group["params"])[0])] = group[PART]

    def add_param_group(param_group: dict[str, Any]) -> None:
        if isinstance(param_group, dict):
            params = param_group.get("params", [])
            listed = [params] if isinstance(params, nn.Parameter) else list(params)
            param_group = {**param_group, "params": listed}
            if listed and all(isinstance(p, nn.Parameter) for p in listed):
                groups = [*_with_rules(config, module, param_group, labels)]
                for group in groups:
                    _check_schedule(config, schedule, group)
                for group in groups:
                    add(group)
                return
        add(param_group)

    optimizer.add_param_group = add_param_group  # type: ignore[method-assign]
    return labels


def _check_schedule(config: OptimConfig, schedule: Any, group: Mapping[str, Any]) -> None:
    if (name := bound_to_groups(schedule, group)) is not None:
        raise ConfigError(
            f"{config.path}.sched",
            f"{name} drives the param groups that it was built with, and none that join in mid-run, as those do that "
            "BackboneFinetuning thaws; CosineAnnealing and all others of NeMo's, CosineAnnealingLR, StepLR, "
            "MultiStepLR, ExponentialLR, LinearLR and PolynomialLR do",
        )


def _with_rules(
    config: OptimConfig, module: nn.Module, added: dict[str, Any], labels: Labels
) -> Iterator[dict[str, Any]]:
    """A group that is added as those of the optimizers that have its parameters, with their rules' options."""
    groups = _groups(config, module, added["params"])
    parts: dict[str, list[ParamGroup]] = {}
    for group in groups:
        parts.setdefault(config.path if PART in added else _part(config, group), []).append(group)
    if any(len(of_part) > 1 for of_part in parts.values()):
        _warn(config, module, groups, len(parts))
    for path, of_part in parts.items():
        if len(of_part) == 1:
            options = _options(config, of_part[0], labels)
        else:
            options = {PART: labels[path]} if path in labels else {}
        if "lr" in added:
            options.pop("lr_factor", None)  # of the rule's lr, which this one takes the place of
        yield {**options, **added, "params": [parameter for group in of_part for parameter in group.params]}


def _warn(config: OptimConfig, module: nn.Module, groups: list[ParamGroup], parts: int) -> None:
    names = {parameter: plain_name(name) for name, parameter in module.named_parameters()}
    shown = "; ".join(f"{_said(group)} for {names.get(group.params[0], 'a parameter')!r}" for group in groups[:4])
    one = "one param group" if parts == 1 else "one param group for each optimizer"
    warnings.warn(
        f"{sum(len(group.params) for group in groups)} parameters join {config.path} as {one}, with its options, "
        f"although the block has several for them: {shown}. Add a group for each instead: for group in "
        "self.thawed_groups(params): optimizer.add_param_group(group)",
        UserWarning,
        stacklevel=4,
    )


def _options(config: OptimConfig, group: ParamGroup, labels: Labels) -> dict[str, Any]:
    spec = own_optimizer(group.rule) or config.optimizer
    options = group.options(new_optimizer(spec, [throw_away_weight()]).defaults)
    path = _part(config, group)
    return {**options, PART: labels[path]} if path in labels else options


def _groups(config: OptimConfig, module: nn.Module, params: list[nn.Parameter]) -> list[ParamGroup]:
    return groups_of_added(module, params, config.param_groups, config.no_decay, config.layer_decay)


def _part(config: OptimConfig, group: ParamGroup) -> str:
    """The path of what has an optimizer object of its own for these parameters: their rule, or the block."""
    rule = group.rule
    return rule.path if isinstance(rule, RuleConfig) and rule.is_part else config.path


def _said(group: ParamGroup) -> str:
    said = [group.rule.label if group.rule is not None else "no rule"]
    said += ["no decay"] if group.exempt else []
    return ", ".join(said + ([f"lr x {group.lr_scale:.3g}"] if group.lr_scale != 1 else []))
