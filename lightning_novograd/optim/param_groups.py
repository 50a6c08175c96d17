"""Rules over parameter names and module types -> param groups."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from glob import escape
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_novograd.errors import ConfigError, choices, closest
from lightning_novograd.log import rank_zero_logger
from lightning_novograd.optim.layer_decay import LayerDecay
from lightning_novograd.optim.wrappers import plain_name

log = rank_zero_logger(__name__)

NORM_TYPES: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ONE_DIMENSIONAL = ("1d", "ndim<=1")
SHORTHANDS = ("bias", "norm", "depthwise", *_ONE_DIMENSIONAL)


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


@dataclass(frozen=True)
class _Use:
    """One name of a parameter; a shared parameter has several."""

    name: str
    module: nn.Module
    ndim: int

    def selected_by(self, pattern: str) -> bool:
        if pattern == "bias":
            leaf = self.name.rpartition(".")[2]
            return leaf == "bias" or leaf.startswith("bias_") or leaf.endswith("_bias")
        if pattern == "norm":
            return isinstance(self.module, NORM_TYPES) or "norm" in type(self.module).__name__.casefold()
        if pattern == "depthwise":
            return isinstance(self.module, _CONVOLUTIONS) and 1 < self.module.groups == self.module.in_channels
        if pattern in _ONE_DIMENSIONAL:
            return self.ndim <= 1
        return fnmatchcase(self.name, pattern)

    def is_of(self, type_pattern: str) -> bool:
        return any(fnmatchcase(base.__name__, type_pattern) for base in type(self.module).__mro__)

    def obeys(self, rule: ParamGroupRule) -> bool:
        return (not rule.match or any(map(self.selected_by, rule.match))) and (
            not rule.module_type or any(map(self.is_of, rule.module_type))
        )


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
        if "lr" not in rule.options and (rule.lr_mult is not None or self.lr_scale != 1):
            lr_mult = 1.0 if rule.lr_mult is None else rule.lr_mult
            group["lr"] = defaults["lr"] * lr_mult * self.lr_scale
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
    uses = _uses(module)
    _check_shapes_known(uses, [*((f"{r.path}.match", r.match) for r in rules), (f"{path}.no_decay", no_decay)])
    keys = _keys(module, uses, rules, no_decay, layer_decay)
    groups: dict[_Key, list[nn.Parameter]] = {}
    frozen = [parameter for parameter in uses if not parameter.requires_grad]
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
    by_layer = len({key.lr_scale for key in order}) > 1
    built = []
    for key in order:
        rule = rules[key.rule] if key.rule < len(rules) else None
        name = "" if len(order) == 1 else _name(rule, key.lr_scale if by_layer else 1.0, key.exempt)
        built.append(ParamGroup(groups[key], rule, key.exempt, key.lr_scale, name))
    _check_names([group.name for group in built], [key.rule for key in order], rules)
    return built


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
    keys = _keys(module, _uses(module), rules, no_decay, layer_decay)
    groups: dict[_Key, list[nn.Parameter]] = {}
    for parameter in params:
        groups.setdefault(keys.get(parameter, _Key(len(rules), 1.0, exempt=False)), []).append(parameter)
    found = ((key, rules[key.rule] if key.rule < len(rules) else None) for key in groups)
    return [ParamGroup(groups[key], rule, key.exempt, key.lr_scale) for key, rule in found]


def matching(module: nn.Module, match: Sequence[str], path: str) -> dict[str, nn.Parameter]:
    """The parameters of `module` that patterns select, frozen ones too, by name.

    Args:
        module: whose parameters.
        match: as in a `ParamGroupRule`.
        path: of the patterns, for errors.

    Raises:
        ConfigError: they select nothing, or a glob among them does.

    """
    rule, uses = ParamGroupRule(match=tuple(match), path=path), _uses(module)
    _check_patterns([use for names in uses.values() for use in names], rule)
    return {names[0].name: p for p, names in uses.items() if any(use.obeys(rule) for use in names)}


@dataclass(frozen=True)
class _Key:
    """What the parameters of a group have in common."""

    rule: int  # as many as there are rules: none
    lr_scale: float
    exempt: bool


def _keys(
    module: nn.Module,
    uses: Mapping[nn.Parameter, list[_Use]],
    rules: Sequence[ParamGroupRule],
    no_decay: Sequence[str],
    layer_decay: LayerDecay | None,
) -> dict[nn.Parameter, _Key]:
    names = [used[0].name for used in uses.values()]
    scales = {} if layer_decay is None else layer_decay.scales(module, names)
    keys = {}
    for parameter, used in uses.items():
        index = _rule_of(used, rules) if parameter.requires_grad else _first_rule(used, rules)
        options = rules[index].options if index < len(rules) else {}
        exempt = "weight_decay" not in options and any(use.selected_by(pattern) for use in used for pattern in no_decay)
        keys[parameter] = _Key(index, 1.0 if "lr" in options else scales.get(used[0].name, 1.0), exempt)
    return keys


def _name(rule: ParamGroupRule | None, scale: float, exempt: bool) -> str:
    parts = [rule.label if rule else "default", f"lr x {scale:.3g}" if scale != 1 else "", "no decay" if exempt else ""]
    return ", ".join(part for part in parts if part)


def _check_names(names: Sequence[str], indices: Sequence[int], rules: Sequence[ParamGroupRule]) -> None:
    """Loggers tell groups apart by their names."""
    for position, (name, index) in enumerate(zip(names, indices, strict=True)):
        if name in names[:position]:
            other = indices[names.index(name)]
            whose = rules[other].path if other < len(rules) else "the parameters that no rule wants"
            raise ConfigError(f"{rules[index].path}.name", f"{name!r} is the group of {whose} too; give another name")


def _uses(module: nn.Module) -> dict[nn.Parameter, list[_Use]]:
    uses: dict[nn.Parameter, list[_Use]] = {}
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for leaf, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
            use = _Use(plain_name(f"{prefix}.{leaf}" if prefix else leaf), owner, parameter.ndim)
            uses.setdefault(parameter, []).append(use)
    return uses


def _check_shapes_known(uses: Mapping[nn.Parameter, list[_Use]], chosen: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Raise where `chosen`, patterns with their paths, choose by dimensions that lazy modules do not have yet."""
    lazy = next((names[0].name for parameter, names in uses.items() if is_lazy(parameter)), None)
    for path, patterns in chosen:
        shorthand = next((pattern for pattern in patterns if pattern in _ONE_DIMENSIONAL), None)
        if lazy is not None and shorthand is not None:
            problem = (
                f"{shorthand!r} asks for the dimensions of {lazy!r}, which a lazy module gets in its first forward"
            )
            raise ConfigError(path, f"{problem}: run a batch through the model before")


def _first_rule(names: Iterable[_Use], rules: Sequence[ParamGroupRule]) -> int:
    return next((index for index, rule in enumerate(rules) if any(use.obeys(rule) for use in names)), len(rules))


def _rule_of(names: Iterable[_Use], rules: Sequence[ParamGroupRule]) -> int:
    """Index of the rule that takes a parameter; `len(rules)` if none does."""
    found: dict[int, str] = {}
    for use in names:
        matching = (index for index, rule in enumerate(rules) if use.obeys(rule))
        found.setdefault(next(matching, len(rules)), use.name)
    if len(found) > 1:
        wanted = "; ".join(
            f"as {name!r} it is in {f'{rules[i].path} ({rules[i].label})' if i < len(rules) else 'no rule'}"
            for i, name in sorted(found.items())
        )
        rule = rules[min(found)]
        raise ConfigError(f"{rule.path}.match", f"a shared parameter has no unique rule: {wanted}; match all its names")
    return next(iter(found))


def _check_all_used(uses: Mapping[nn.Parameter, list[_Use]], rules: Sequence[ParamGroupRule], used: set[int]) -> None:
    for index, rule in enumerate(rules):
        _check_patterns([use for names in uses.values() for use in names], rule)
        if index in used:
            continue
        where = f"{rule.path}.match" if rule.match else f"{rule.path}.module_type"
        trainable = [names for p, names in uses.items() if p.requires_grad and any(use.obeys(rule) for use in names)]
        if trainable:
            shown = ", ".join(sorted({names[0].name for names in trainable})[:5])
            raise ConfigError(where, f"{rule.label!r} matches only parameters that earlier rules have taken: {shown}")
        log.warning("%s: %r matches only frozen parameters", where, rule.label)


def _check_patterns(uses: Sequence[_Use], rule: ParamGroupRule) -> None:
    """Raise for a pattern of the rule that selects nothing; a shorthand may, beside others that do."""
    of_type = [use for use in uses if use.obeys(replace(rule, match=()))]
    for pattern in rule.module_type:
        if not any(use.is_of(pattern) for use in uses):
            types = {type(use.module).__name__ for use in uses}
            problem = f"no parameter belongs to a {pattern!r}{choices(pattern, types)}"
            raise ConfigError(f"{rule.path}.module_type", problem)
    for pattern in rule.match:
        if pattern not in SHORTHANDS and not any(use.selected_by(pattern) for use in of_type):
            whose = f" of a {', '.join(rule.module_type)}" if rule.module_type else ""
            problem = f"{pattern!r} matches no parameter{whose}{_nearest(pattern, of_type)}"
            raise ConfigError(f"{rule.path}.match", problem)
    if not any(use.obeys(rule) for use in uses):
        raise ConfigError(f"{rule.path}.match", f"{rule.label!r} matches no parameter")


def _check_no_decay(uses: Mapping[nn.Parameter, list[_Use]], no_decay: Sequence[str], path: str) -> None:
    found = [use for names in uses.values() for use in names]
    for pattern in no_decay:
        hit = any(use.selected_by(pattern) for use in found)
        if not hit and pattern not in SHORTHANDS:  # one block serves models with and without biases
            where = f"{path}.no_decay"
            raise ConfigError(where, f"{pattern!r} matches no parameter{_nearest(pattern, found)}")


def _nearest(pattern: str, uses: Sequence[_Use]) -> str:
    names = [use.name for use in uses]
    if any(name.startswith(f"{pattern}.") for name in names):
        return f"; did you mean '{escape(pattern)}.*'?"
    modules = {".".join(n.split(".")[:i]) for n in names for i in range(1, n.count(".") + 1)}
    best = closest(pattern, {*map(escape, names), *SHORTHANDS, *(f"{escape(module)}.*" for module in modules)})
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    if best is None:
        return f". The module has: {shown}"
    return f"; did you mean {best!r}?{' (brackets are glob syntax)' if '[' in best else ''} The module has: {shown}"
