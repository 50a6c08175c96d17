"""What shorthands and globs select among the parameters of a module."""

import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase, translate
from glob import escape

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_novograd.errors import ConfigError, choices, closest
from lightning_novograd.optim.wrappers import plain_name

NORM_TYPES: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
# of classes that torch does not know: RMSNorm, LayerNormFp32, InstanceNormalization, but no NormalizingFlow
_NORM = re.compile(r"norm(?!al)|normali[sz]ation", re.IGNORECASE)
_NORM_AT_END = re.compile(r"norm(\dd)?$", re.IGNORECASE)  # whatever the shape: no LayerNormLinear
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ONE_DIMENSIONAL = ("1d", "ndim<=1")
SHORTHANDS = ("bias", "norm", "depthwise", *_ONE_DIMENSIONAL)


@dataclass(frozen=True)
class Use:
    """One name of a parameter; a shared parameter has several."""

    name: str
    module: nn.Module
    ndim: int
    axes: int  # along which it has more than one element

    def is_meant_by(self, shorthand: str) -> bool:
        """Whether it is one of those that a shorthand stands for."""
        if shorthand == "bias":
            leaf = self.name.rpartition(".")[2]
            return leaf == "bias" or leaf.startswith("bias_") or leaf.endswith("_bias")
        if shorthand == "norm":
            name = type(self.module).__name__
            named_so = _NORM.search(name) is not None and (self.axes <= 1 or _NORM_AT_END.search(name) is not None)
            return named_so or isinstance(self.module, NORM_TYPES)
        if shorthand == "depthwise":
            return isinstance(self.module, _CONVOLUTIONS) and 1 < self.module.groups == self.module.in_channels
        return self.ndim <= 1


class Names:
    """All names of strings, for many globs: of those that begin alike only some are compared.

    Args:
        names: in any order; the same one may come twice.

    """

    def __init__(self, names: Iterable[str]) -> None:
        self._sorted = sorted((name, index) for index, name in enumerate(names))

    def matching(self, glob: str) -> frozenset[int]:
        """The positions of the names that a glob matches."""
        beginning = re.split(r"[*?\[]", glob, maxsplit=1)[0]
        matches = re.compile(translate(glob)).match
        found = []
        for name, index in self._sorted[bisect_left(self._sorted, (beginning, -1)) :]:
            if not name.startswith(beginning):
                break
            if matches(name):
                found.append(index)
        return frozenset(found)


class Uses:
    """All names of all parameters of a module, frozen ones too; what a pattern selects is looked up once.

    Args:
        module: that has the parameters.

    """

    def __init__(self, module: nn.Module) -> None:
        self.all: list[Use] = []
        self.of: dict[nn.Parameter, list[int]] = {}  # positions in `all`
        for prefix, owner in module.named_modules(remove_duplicate=False):
            for leaf, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
                self.of.setdefault(parameter, []).append(len(self.all))
                axes = 0 if is_lazy(parameter) else sum(size > 1 for size in parameter.shape)
                self.all.append(Use(plain_name(f"{prefix}.{leaf}" if prefix else leaf), owner, parameter.ndim, axes))
        self.names = [use.name for use in self.all]
        self._by_name = Names(self.names)
        self._selected: dict[str, frozenset[int]] = {}
        self._of_type: dict[str, frozenset[int]] = {}

    def first_name(self, parameter: nn.Parameter) -> str:
        """The name that stands for a shared parameter."""
        return self.names[self.of[parameter][0]]

    def selected(self, pattern: str) -> frozenset[int]:
        """What a shorthand or a glob over names selects."""
        if pattern not in self._selected:
            self._selected[pattern] = (
                frozenset(i for i, use in enumerate(self.all) if use.is_meant_by(pattern))
                if pattern in SHORTHANDS
                else self._by_name.matching(pattern)
            )
        return self._selected[pattern]

    def selected_by_any(self, patterns: Iterable[str]) -> frozenset[int]:
        """What at least one of the patterns selects."""
        return frozenset[int]().union(*map(self.selected, patterns))

    def of_type(self, pattern: str) -> frozenset[int]:
        """The parameters of modules of which a glob matches the class or a base."""
        if pattern not in self._of_type:
            types = {type(use.module) for use in self.all}
            meant = {cls for cls in types if any(fnmatchcase(base.__name__, pattern) for base in cls.__mro__)}
            self._of_type[pattern] = frozenset(i for i, use in enumerate(self.all) if type(use.module) in meant)
        return self._of_type[pattern]

    def meeting(self, match: Sequence[str], module_type: Sequence[str]) -> frozenset[int]:
        """What a pattern in each of both selects; an empty list selects everything."""
        found = frozenset(range(len(self.all)))
        if match:
            found &= self.selected_by_any(match)
        if module_type:
            found &= frozenset[int]().union(*map(self.of_type, module_type))
        return found

    def check(self, match: Sequence[str], module_type: Sequence[str], path: str) -> None:
        """Raise for a pattern that selects nothing; a shorthand may, beside others that do.

        Args:
            match: shorthands and globs over names.
            module_type: globs over class names.
            path: of the rule that has them.

        Raises:
            ConfigError: such a pattern, or all together select nothing.

        """
        for pattern in module_type:
            if not self.of_type(pattern):
                types = {type(use.module).__name__ for use in self.all}
                problem = f"no parameter belongs to a {pattern!r}{choices(pattern, types)}"
                raise ConfigError(f"{path}.module_type", problem)
        for pattern in match:
            if pattern not in SHORTHANDS and not self.meeting([pattern], module_type):
                whose = f" of a {', '.join(module_type)}" if module_type else ""
                nearest = self.nearest(pattern, sorted(self.meeting((), module_type)))
                raise ConfigError(f"{path}.match", f"{pattern!r} matches no parameter{whose}{nearest}")

    def nearest(self, pattern: str, among: Collection[int]) -> str:
        """The end of a message about a pattern that selects nothing among these."""
        names = [self.names[index] for index in among]
        if any(name.startswith(f"{pattern}.") for name in names):
            return f"; did you mean '{escape(pattern)}.*'?"
        modules = {".".join(n.split(".")[:i]) for n in names for i in range(1, n.count(".") + 1)}
        best = closest(pattern, {*map(escape, names), *SHORTHANDS, *(f"{escape(module)}.*" for module in modules)})
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        if best is None:
            return f". The module has: {shown}"
        return f"; did you mean {best!r}?{' (brackets are glob syntax)' if '[' in best else ''} The module has: {shown}"

    def check_shapes_known(self, chosen: Mapping[str, Sequence[str]]) -> None:
        """Raise where patterns, by their paths, choose by dimensions that lazy modules do not have yet."""
        lazy = next((parameter for parameter in self.of if is_lazy(parameter)), None)
        for path, patterns in chosen.items():
            shorthand = next((pattern for pattern in patterns if pattern in _ONE_DIMENSIONAL), None)
            if lazy is not None and shorthand is not None:
                problem = (
                    f"{shorthand!r} asks for the dimensions of {self.first_name(lazy)!r}, which a lazy module gets"
                )
                raise ConfigError(path, f"{problem} in its first forward: run a batch through the model before")


def matching(module: nn.Module, match: Sequence[str], path: str) -> dict[str, nn.Parameter]:
    """The parameters of `module` that patterns select, frozen ones too, by name.

    Args:
        module: whose parameters.
        match: shorthands and globs over names.
        path: of the patterns, for errors.

    Raises:
        ConfigError: they select nothing, or a glob among them does.

    """
    uses = Uses(module)
    uses.check(match, (), path)
    found = uses.meeting(match, ())
    if not found:
        raise ConfigError(f"{path}.match", f"{','.join(match)!r} matches no parameter")
    return {uses.first_name(p): p for p, indices in uses.of.items() if not found.isdisjoint(indices)}
