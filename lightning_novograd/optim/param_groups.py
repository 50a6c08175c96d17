"""Rules over parameter names and module types -> param groups."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_novograd.errors import ConfigError
from lightning_novograd.log import rank_zero_logger
from lightning_novograd.optim.layer_decay import LayerDecay
from lightning_novograd.optim.selection import SHORTHANDS, Uses

log = rank_zero_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class ParamGroupRule:
    """Options for the parameters that a rule selects; of several rules the first that matches wins.

    Args:
        match: each a shorthand (`bias`, `norm`, `depthwise`, `1d` or `ndim<=1`) or a glob over parameter names; one
            must match.
        module_type: globs over the class names of the owning module (its bases count); one must match.
        options: optimizer arguments that differ in this group; `larc: False` takes it out of LARC.
        lr_mult: factor of the optimizer's lr, >= 0; None: 1.
        wd_mult: factor of the optimizer's weight_decay, >= 0; None: 1.
        name: of the group, in logs and progress bars.
        path: where the config has the rule.

    """

    match: tuple[str, ...] = ()
    module_type: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    lr_mult: float | None = None
    wd_mult: float | None = None
    name: str = ""
    path: str = "optim.param_groups"

    @property
    def label(self) -> str:
        """The group's name, or what it selects."""
        return self.name or ",".join((*self.match, *self.module_type))

    def selected(self, uses: Uses) -> frozenset[int]:
        """The parameters' names that obey the rule, by their positions."""
        return uses.meeting(self.match, self.module_type)


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that are optimized alike.

    Args:
        params: the parameters.
        rule: that they obey; None: none.
        exempt: whether they have no weight decay.
        lr_scale: factor of the optimizer's lr, from `layer_decay`.
        name: empty where there is one group.

    """

    params: list[nn.Parameter]
    rule: ParamGroupRule | None = None
    exempt: bool = False
    lr_scale: float = 1.0
    name: str = ""

    def options(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """The group as an optimizer takes it; `defaults` are the optimizer's."""
        rule = self.rule or ParamGroupRule()
        group: dict[str, Any] = {"params": self.params, **rule.options}
        factor = self.lr_scale * (1.0 if rule.lr_mult is None else rule.lr_mult)
        if "lr" not in rule.options and factor != 1:
            group["lr"] = defaults["lr"] * factor
            group["lr_factor"] = factor  # for schedules with absolute LRs of their own, as `min_lr`
        if rule.wd_mult is not None:
            group["weight_decay"] = defaults["weight_decay"] * rule.wd_mult
        if self.exempt and "weight_decay" in defaults:
            group["weight_decay"] = 0.0
        if self.name:
            group["name"] = self.name
        return group


def build_param_groups(
    module: nn.Module,
    rules: Sequence[ParamGroupRule] = (),
    no_decay: Sequence[str] = (),
    path: str = "optim",
    layer_decay: LayerDecay | None = None,
) -> list[ParamGroup]:
    """Param groups of `module`: one per rule, what no rule wants, and each split by layer and by `no_decay`.

    Frozen parameters (`requires_grad=False`) are in no group. A shared parameter is in one group, once; where its names
    would put it into different ones, that is an error. With more than one group, each has a `name`.

    Args:
        module: whose parameters.
        rules: first match wins.
        no_decay: shorthands and globs; the parameters get `weight_decay=0` unless their rule sets one.
        path: of the optim block, for errors.
        layer_decay: a shared parameter has the layer of its first name.

    Raises:
        ConfigError: a rule that selects nothing, or nothing that earlier rules left; a glob, here or in a rule, that
            selects nothing; a shared parameter that two rules want; two groups of one name; no trainable parameter; a
            choice by dimensions, where a lazy module does not have its own yet.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        >>> [(g.name, len(g.params)) for g in build_param_groups(model, no_decay=("bias", "norm"))]
        [('default', 1), ('default, no decay', 3)]

    """
    uses = Uses(module)
    uses.check_shapes_known({**{f"{rule.path}.match": rule.match for rule in rules}, f"{path}.no_decay": no_decay})
    keys = _keys(module, uses, rules, no_decay, layer_decay)
    groups: dict[_Key, list[nn.Parameter]] = {}
    frozen = [parameter for parameter in uses.of if not parameter.requires_grad]
    for parameter, key in keys.items():
        if parameter.requires_grad:
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise ConfigError(path, f"{type(module).__name__} has no trainable parameters ({len(frozen)} frozen ones)")
    _check_all_used(uses, rules, {key.rule for key in groups})
    _check_no_decay(uses, no_decay, path)
    if frozen:
        elements = sum(p.numel() for p in frozen if not is_lazy(p))
        log.info("%d frozen parameters (%d elements) are left out of the optimizer", len(frozen), elements)

    # the default group first: schedulers and loggers that look at one group look at this one
    order = sorted(groups, key=lambda key: (key.rule != len(rules), key.rule, -key.lr_scale, key.exempt))
    names = _names(order, rules)
    return [
        ParamGroup(groups[key], rules[key.rule] if key.rule < len(rules) else None, key.exempt, key.lr_scale, name)
        for key, name in zip(order, names, strict=True)
    ]


def groups_of_added(
    module: nn.Module,
    params: Iterable[nn.Parameter],
    rules: Sequence[ParamGroupRule] = (),
    no_decay: Sequence[str] = (),
    layer_decay: LayerDecay | None = None,
) -> list[ParamGroup]:
    """The same for parameters that were frozen when the groups were built; without names, and nothing is checked.

    Args:
        module: that has the parameters, and may have others.
        params: the parameters; what the module does not have obeys no rule.
        rules: as for `build_param_groups`.
        no_decay: likewise.
        layer_decay: likewise.

    """
    keys = _keys(module, Uses(module), rules, no_decay, layer_decay)
    groups: dict[_Key, list[nn.Parameter]] = {}
    for parameter in params:
        groups.setdefault(keys.get(parameter, _Key(len(rules), 1.0, exempt=False)), []).append(parameter)
    found = ((key, rules[key.rule] if key.rule < len(rules) else None) for key in groups)
    return [ParamGroup(groups[key], rule, key.exempt, key.lr_scale) for key, rule in found]


@dataclass(frozen=True)
class _Key:
    """What the parameters of a group have in common."""

    rule: int  # as many as there are rules: none
    lr_scale: float
    exempt: bool


def _keys(
    module: nn.Module,
    uses: Uses,
    rules: Sequence[ParamGroupRule],
    no_decay: Sequence[str],
    layer_decay: LayerDecay | None,
) -> dict[nn.Parameter, _Key]:
    names = list(map(uses.first_name, uses.of))
    scales = {} if layer_decay is None else layer_decay.scales(module, names)
    exempt = uses.selected_by_any(no_decay)
    takers = [len(rules)] * len(uses.all)  # the first rule that each name obeys
    for index in reversed(range(len(rules))):
        for use in rules[index].selected(uses):
            takers[use] = index
    keys = {}
    for (parameter, indices), name in zip(uses.of.items(), names, strict=True):
        taker = min(takers[use] for use in indices)
        if parameter.requires_grad:
            _check_unique(uses, {takers[use]: use for use in reversed(indices)}, rules)
        rule = rules[taker] if taker < len(rules) else ParamGroupRule()
        scale = 1.0 if "lr" in rule.options else scales.get(name, 1.0)
        keys[parameter] = _Key(taker, scale, "weight_decay" not in rule.options and not exempt.isdisjoint(indices))
    return keys


def _names(keys: Sequence[_Key], rules: Sequence[ParamGroupRule]) -> list[str]:
    """The groups' names, by which loggers tell them apart; a single one has none.

    Raises:
        ConfigError: two rules have the same one.

    """
    scales = {key.lr_scale for key in keys}
    digits = next(n for n in range(3, 18) if len({f"{scale:.{n}g}" for scale in scales}) == len(scales))
    names: dict[str, _Key] = {}
    for key in keys:
        scale = f"lr x {key.lr_scale:.{digits}g}" if key.lr_scale != 1 and len(scales) > 1 else ""
        label = rules[key.rule].label if key.rule < len(rules) else "default"
        name = ", ".join(part for part in (label, scale, "no decay" if key.exempt else "") if part)
        if name in names:
            other = names[name].rule
            whose = rules[other].path if other < len(rules) else "the parameters that no rule wants"
            problem = f"{name!r} is the group of {whose} too; give another name"
            raise ConfigError(f"{rules[key.rule].path}.name", problem)
        names[name] = key
    return list(names) if len(names) > 1 else [""]


def _check_unique(uses: Uses, takers: Mapping[int, int], rules: Sequence[ParamGroupRule]) -> None:
    """Raise for a shared parameter that several rules take; `takers` has the first name that each takes it by."""
    if len(takers) > 1:
        wanted = "; ".join(
            f"as {uses.names[use]!r} it is in {f'{rules[i].path} ({rules[i].label})' if i < len(rules) else 'no rule'}"
            for i, use in sorted(takers.items())
        )
        shared = next(uses_of for uses_of in uses.of.values() if set(takers.values()) <= set(uses_of))
        names = ", ".join(f'"{uses.names[use]}"' for use in shared)
        problem = f"a shared parameter has no unique rule: {wanted}; match all its names, [{names}]"
        raise ConfigError(f"{rules[min(takers)].path}.match", problem)


def _check_all_used(uses: Uses, rules: Sequence[ParamGroupRule], used: set[int]) -> None:
    for index, rule in enumerate(rules):
        uses.check(rule.match, rule.module_type, rule.path)
        selected = rule.selected(uses)
        if not selected:
            raise ConfigError(f"{rule.path}.match", f"{rule.label!r} matches no parameter")
        if index in used:
            continue
        where = f"{rule.path}.match" if rule.match else f"{rule.path}.module_type"
        trainable = [p for p, indices in uses.of.items() if p.requires_grad and not selected.isdisjoint(indices)]
        if trainable:
            shown = ", ".join(sorted({uses.first_name(p) for p in trainable})[:5])
            raise ConfigError(where, f"{rule.label!r} matches only parameters that earlier rules have taken: {shown}")
        log.warning("%s: %r matches only frozen parameters", where, rule.label)


def _check_no_decay(uses: Uses, no_decay: Sequence[str], path: str) -> None:
    for pattern in no_decay:
        if not uses.selected(pattern) and pattern not in SHORTHANDS:  # one block serves models with and without biases
            nearest = uses.nearest(pattern, range(len(uses.all)))
            raise ConfigError(f"{path}.no_decay", f"{pattern!r} matches no parameter{nearest}")
