"""Param groups that join in mid-run: fine-tuning callbacks thaw layers and know no rules of the optim block."""

import warnings
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_novograd.config.optimizers import new_optimizer, throw_away_weight
from lightning_novograd.config.schema import OptimConfig, RuleConfig
from lightning_novograd.optim.param_groups import ParamGroup, groups_of_added
from lightning_novograd.optim.wrappers import plain_name


def thawed_groups(config: OptimConfig, module: nn.Module, params: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Param groups for `optimizer.add_param_group`, with the options that the block has for these parameters.

    Args:
        config: the block.
        module: that has them.
        params: parameters that were frozen when the optimizer was built.

    """
    defaults = new_optimizer(config.optimizer, [throw_away_weight()]).defaults
    return [group.options(defaults) for group in _groups(config, module, params)]


def follow_rules(optimizer: Optimizer, config: OptimConfig, module: nn.Module) -> None:
    """Have param groups that are added to `optimizer` take what the block says of their parameters.

    Where all parameters of a group fall under one rule, the group gets that rule's options, as far as it has none of
    its own. Where they do not, the group stays as it is, since whoever added it may change its LR later on, and a
    warning names the rules.

    Args:
        optimizer: built of `config`.
        config: the block.
        module: that has the parameters.

    """
    add = optimizer.add_param_group

    def add_param_group(param_group: dict[str, Any]) -> None:
        if isinstance(param_group, dict):
            params = param_group.get("params", [])
            listed = [params] if isinstance(params, nn.Parameter) else list(params)
            plain = [p for p in listed if isinstance(p, nn.Parameter)]
            param_group = {**_options(config, module, plain), **param_group, "params": listed}
        add(param_group)

    optimizer.add_param_group = add_param_group  # type: ignore[method-assign]


def _options(config: OptimConfig, module: nn.Module, params: list[nn.Parameter]) -> dict[str, Any]:
    groups = _groups(config, module, params)
    if len(groups) == 1 and not _has_own_optimizer(groups[0]):
        (options,) = thawed_groups(config, module, params)
        return options
    if groups:
        names = {parameter: plain_name(name) for name, parameter in module.named_parameters()}
        shown = "; ".join(f"{_said(group)} for {names.get(group.params[0], 'a parameter')!r}" for group in groups[:4])
        warnings.warn(
            f"{len(params)} parameters join {config.path} as one param group, with its options, although the block has "
            f"several for them: {shown}. Add a group for each instead: for group in self.thawed_groups(params): "
            "optimizer.add_param_group(group)",
            UserWarning,
            stacklevel=4,
        )
    return {}


def _groups(config: OptimConfig, module: nn.Module, params: list[nn.Parameter]) -> list[ParamGroup]:
    return groups_of_added(module, params, config.param_groups, config.no_decay, config.layer_decay)


def _has_own_optimizer(group: ParamGroup) -> bool:
    return isinstance(group.rule, RuleConfig) and group.rule.is_part


def _said(group: ParamGroup) -> str:
    said = [group.rule.label if group.rule is not None else "no rule"]
    said += ["no decay"] if group.exempt else []
    return ", ".join(said + ([f"lr x {group.lr_scale:.3g}"] if group.lr_scale != 1 else []))
