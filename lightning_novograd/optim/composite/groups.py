"""The param groups of several optimizers as one list, and which of these optimizers a param group belongs to."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_novograd.errors import choices
from lightning_novograd.optim.parameters import known_shape
from lightning_novograd.optim.wrapped import all_in, full_name

ParamGroup = dict[str, Any]

# The key of a param group under which its part is named
PART = "optimizer"


def labels_of(parts: Sequence[Optimizer]) -> tuple[str, ...]:
    """The parts' names; where two are called the same, `"SGD#0"` and `"SGD#2"` by their positions."""
    names = [full_name(part) for part in parts]
    counts = Counter(names)
    return tuple(f"{name}#{i}" if counts[name] > 1 else name for i, name in enumerate(names))


def check_disjoint(groups: Sequence[ParamGroup], owners: Sequence[int], labels: Sequence[str]) -> None:
    """Raise for a parameter that several parts would step on.

    Args:
        groups: all param groups.
        owners: the part that each belongs to.
        labels: the parts' names.

    """
    places: dict[int, tuple[int, int]] = {}
    for index, (group, owner) in enumerate(zip(groups, owners, strict=True)):
        for position, param in enumerate(group["params"]):
            other, other_position = places.setdefault(id(param), (index, position))
            if owners[other] != owner:
                names = [*groups[other].get("param_names", ())[other_position : other_position + 1]]
                names += group.get("param_names", ())[position : position + 1]
                what = repr(names[0]) if names else f"a parameter of shape {tuple(known_shape(param) or '?')}"
                raise ValueError(
                    f"{what} is number {other_position} of param group {other} ({labels[owners[other]]}) and number "
                    f"{position} of param group {index} ({labels[owner]}); a parameter belongs to one optimizer"
                )


class ParamGroups:
    """All param groups of some optimizers: first the groups in the parts' order, then those added since, as they came.

    The groups are the parts' own dicts, with the part's name under `optimizer`. They stand in one plain list, since
    torch.compile looks into an optimizer's `param_groups` and knows no other. `synced` makes up for what has been
    changed in that list or in the parts'.

    Args:
        parts: the optimizers.
        owners: the part of each group, where the order is not that of the parts.

    """

    def __init__(self, parts: Sequence[Optimizer], owners: Sequence[int] = ()) -> None:
        self.parts, self.labels, self.owners = tuple(parts), labels_of(parts), list(owners)
        self._all: list[ParamGroup] = []
        self._agreed: list[ParamGroup] = []  # what that list and the parts' were when they last agreed
        self._owner_of: dict[Tensor, int] = {}  # each parameter's
        self._counted: list[tuple[int, int, int]] = []  # what that was made of
        self.synced()

    def synced(self) -> list[ParamGroup]:
        """The list, which is the same object always, after it and the parts' lists have been made to agree.

        Raises:
            RuntimeError: both have been changed since the last call.

        """
        owners, groups = self._of_parts()
        if not _same(self._all, self._agreed):
            if not _same(groups, self._agreed):
                raise RuntimeError(
                    f"the param groups of {' and '.join(self.labels)} were changed both in the Composite's list and in "
                    "theirs; change one of them at a time, or use add_param_group"
                )
            self.assign(self._all)
        elif not _same(groups, self._agreed):
            self._agree(owners, groups)
        return self._all

    def assign(self, groups: Iterable[ParamGroup]) -> None:
        """Put `groups` in the place of all, each with the part that it names, or else with the first.

        Raises:
            ValueError: a group names no part, or a parameter is in groups of two; all stays as it was.

        """
        groups = list(groups)
        try:
            owners = [self.owner_of(group) for group in groups]
            check_disjoint(groups, owners, self.labels)
        except Exception:
            self._all[:] = self._agreed
            raise
        own: list[list[ParamGroup]] = [[] for _ in self.parts]
        for owner, group in zip(owners, groups, strict=True):
            own[owner].append(group)
        for part, param_groups in zip(self.parts, own, strict=True):
            part.param_groups = param_groups
        self._agree(owners, groups)

    def owner_of(self, group: ParamGroup) -> int:
        """The index of the part that a group names under `optimizer`, by its index or name; without it the first."""
        part = group.get(PART, 0)
        if isinstance(part, int) and not isinstance(part, bool):
            if not 0 <= part < len(self.parts):
                allowed = ", ".join(f"{i} ({label})" for i, label in enumerate(self.labels))
                raise ValueError(f"a param group names optimizer {part}. Allowed: {allowed}")
            return part
        if part in self.labels:
            return self.labels.index(part)
        named = [i for i, one in enumerate(self.parts) if part in _names(one)]
        if not named:
            raise ValueError(f"a param group names an unknown optimizer {part!r}{choices(part, self.labels)}")
        if len(named) > 1:
            raise ValueError(
                f"a param group names the optimizer {part!r}, which may be {' or '.join(self.labels[i] for i in named)}"
            )
        return named[0]

    def owner_of_param(self, param: object) -> int | None:
        """The index of the part that a parameter belongs to; None for anything else."""
        if not isinstance(param, Tensor):
            return None
        groups = self.synced()
        counted = [(owner, id(g["params"]), len(g["params"])) for owner, g in zip(self.owners, groups, strict=True)]
        if counted != self._counted or param not in self._owner_of:
            # of a parameter that is in several groups, the first one's
            pairs = [(owner, p) for owner, g in zip(self.owners, groups, strict=True) for p in g["params"]]
            self._owner_of = {p: owner for owner, p in reversed(pairs)}
            self._counted = counted
        return self._owner_of.get(param)

    def _of_parts(self) -> tuple[list[int], list[ParamGroup]]:
        """The groups in the parts' lists, in our order, and the part of each."""
        rest = [list(part.param_groups) for part in self.parts]
        owners = []
        groups = []
        for owner in self.owners:
            if rest[owner]:
                groups.append(rest[owner].pop(0))
                owners.append(owner)
        for owner, added in enumerate(rest):
            groups += added
            owners += [owner] * len(added)
        return owners, groups

    def _agree(self, owners: list[int], groups: list[ParamGroup]) -> None:
        self._all[:] = groups
        self._agreed, self.owners = list(groups), owners
        for owner, group in zip(owners, groups, strict=True):
            group[PART] = self.labels[owner]


def _same(groups: Sequence[ParamGroup], others: Sequence[ParamGroup]) -> bool:
    return len(groups) == len(others) and all(one is other for one, other in zip(groups, others, strict=True))


def _names(optimizer: Optimizer) -> list[str]:
    """What a part may be called: `"LARC(SGD)"`, `"LARC"`, `"SGD"`."""
    return [name for one in all_in(optimizer) for name in (full_name(one), type(one).__name__)]
