"""The state dicts of several optimizers as one in torch's format, and back."""

from collections.abc import Hashable, Sequence
from typing import Any

from lightning_novograd.optim.composite.groups import PART, ParamGroup, ParamGroups

StateDict = dict[str, Any]

# Beside torch's "state" and "param_groups": what else the parts' state dicts hold, one dict for each part
EXTRAS = "optimizers"
_TORCHS = ("state", "param_groups")


def joined(state_dicts: Sequence[StateDict], groups: ParamGroups) -> StateDict:
    """One state dict with indices over all param groups.

    State that a part keeps under a key of its own, not for a parameter, is under the pair of the part's index and that
    key.

    Args:
        state_dicts: the parts'.
        groups: the parts' param groups, which have the order of the result's.

    """
    rest = [list(state_dict["param_groups"]) for state_dict in state_dicts]
    numbers: list[dict[Hashable, Hashable]] = [{} for _ in state_dicts]
    packed, start = [], 0
    for owner in groups.owners:
        group = rest[owner].pop(0)
        packed.append({**group, "params": _renumbered(group, numbers[owner], start), PART: groups.labels[owner]})
        start += len(group["params"])
    state = {
        numbers[index].get(key, (index, key)): value
        for index, state_dict in enumerate(state_dicts)
        for key, value in state_dict["state"].items()
    }
    result: StateDict = {"state": state, "param_groups": packed}
    extras = [{key: value for key, value in one.items() if key not in _TORCHS} for one in state_dicts]
    return {**result, EXTRAS: extras} if any(extras) else result


def split(state_dict: StateDict, groups: ParamGroups) -> list[StateDict]:
    """A state dict for each part, with indices of its own.

    Args:
        state_dict: from `joined`.
        groups: the parts' param groups.

    Raises:
        ValueError: it was saved for other optimizers, for others of their param groups, or for other parameters.

    """
    saved: list[ParamGroup] = state_dict["param_groups"]
    check_same_parts(saved, groups)
    result: list[StateDict] = [{"state": {}, "param_groups": []} for _ in groups.parts]
    numbers: list[dict[Hashable, Hashable]] = [{} for _ in groups.parts]
    starts = [0] * len(result)
    places: dict[Hashable, tuple[int, Hashable]] = {}
    for owner, group in zip(groups.owners, saved, strict=True):
        params = _renumbered(group, numbers[owner], starts[owner])
        starts[owner] += len(params)
        places.update({key: (owner, number) for key, number in zip(group["params"], params, strict=True)})
        result[owner]["param_groups"].append({**group, "params": params})
    for key, value in state_dict["state"].items():
        if key not in places and not (isinstance(key, tuple) and len(key) == 2 and key[0] in range(len(result))):
            raise ValueError(f"loaded state dict holds state for {key!r}, which is none of its parameters")
        owner, number = places.get(key, key)
        result[owner]["state"][number] = value
    for one, extra in zip(result, state_dict.get(EXTRAS, [{}] * len(result)), strict=True):
        one.update(extra)
    return result


def check_same_parts(saved: Sequence[ParamGroup], groups: ParamGroups) -> None:
    """Raise where param groups were saved for other optimizers, or for them in another order."""
    names = [group.get(PART) for group in saved]
    own = [groups.labels[owner] for owner in groups.owners]
    if not any(names):
        raise ValueError(
            f"loaded state dict is that of a single optimizer with {_counted(len(saved), 'param group')}, not of "
            f"Composite({', '.join(groups.labels)})"
        )
    labels = list(map(str, names))
    if _places(labels) != _places(own) or not all(map(_takes, own, labels)):
        raise ValueError(
            f"loaded state dict is that of Composite({', '.join(dict.fromkeys(labels))}), whose param groups are those "
            f"of {', '.join(labels)}; this is Composite({', '.join(groups.labels)}), with param groups of "
            f"{', '.join(own)}; build it of the same optimizers in the same order"
        )
    for index, (group, label) in enumerate(zip(groups.synced(), own, strict=True)):
        size, saved_size = len(group["params"]), len(saved[index]["params"])
        if size != saved_size:
            raise ValueError(
                f"loaded state dict has {_counted(saved_size, 'parameter')} in param group {index} ({label}), where "
                f"this optimizer has {size}"
            )


def _places(labels: Sequence[str]) -> list[int]:
    """Which part each label stands for, counted as they come."""
    return [list(dict.fromkeys(labels)).index(label) for label in labels]


def _takes(own: str, saved: str) -> bool:
    """Whether a part loads what was saved for one of that name; a LARC also loads what was saved without it."""
    own, saved = own.partition("#")[0], saved.partition("#")[0]
    return own in (saved, f"LARC({saved})")


def _renumbered(group: ParamGroup, numbers: dict[Hashable, Hashable], start: int) -> list[Hashable]:
    """The new numbers of a saved group's parameters, counted from `start`; a parameter that comes twice has one."""
    for number, key in enumerate(group["params"], start):
        numbers.setdefault(key, number)
    return [numbers[key] for key in group["params"]]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
