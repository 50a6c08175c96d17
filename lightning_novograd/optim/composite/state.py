"""The state of several optimizers as one mapping."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, MutableMapping
from itertools import chain
from typing import Any

from lightning_novograd.optim.composite.groups import ParamGroups


class State(MutableMapping[Any, Any]):
    """What the parts remember of their parameters: read and written in the part that has the parameter.

    As in an optimizer's own state, a parameter that has none yet gets an empty one when it is looked up. Of keys that
    are no parameters the first part that has them is meant.

    Args:
        groups: the parts' param groups.

    """

    def __init__(self, groups: ParamGroups) -> None:
        self._groups = groups

    def __getitem__(self, key: Any) -> Any:
        return self._owner(key)[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._owner(key)[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._owner(key)[key]

    def __contains__(self, key: object) -> bool:
        return any(key in part.state for part in self._groups.parts)

    def __iter__(self) -> Iterator[Any]:
        return iter(dict.fromkeys(chain.from_iterable(part.state for part in self._groups.parts)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return repr(dict(self))

    # The base class looks a key up to find whether it is there, and a look-up makes a state for the parameter.
    def get(self, key: Any, default: Any = None) -> Any:
        """The state under a key; it is not made."""
        return self._owner(key)[key] if key in self else default

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """The state under a key, which is `default` if there was none."""
        if key not in self:
            self[key] = default
        return self[key]

    def pop(self, key: Any, *default: Any) -> Any:
        """The state under a key, which is deleted."""
        if key not in self:
            return {}.pop(key, *default)
        return self._owner(key).pop(key)

    def popitem(self) -> tuple[Any, Any]:
        """A key and its state, which is deleted: the one that came last, of the last part that has any."""
        part = next((part for part in reversed(self._groups.parts) if part.state), self._groups.parts[0])
        return part.state.popitem()

    def clear(self) -> None:
        """Delete the parts' states."""
        for part in self._groups.parts:
            part.state.clear()

    def copy(self) -> dict[Any, Any]:
        """All states in a dict of its own, as an optimizer's."""
        return defaultdict(dict, self.items())

    def assign(self, state: Mapping[Any, Any]) -> None:
        """Put `state` in the place of all."""
        own: list[defaultdict[Any, Any]] = [defaultdict(dict) for _ in self._groups.parts]
        for key in state:
            own[self._index(key)][key] = state[key]
        for part, its in zip(self._groups.parts, own, strict=True):
            part.state = its

    def _owner(self, key: Any) -> Any:
        return self._groups.parts[self._index(key)].state

    def _index(self, key: Any) -> int:
        for index, part in enumerate(self._groups.parts):
            if key in part.state:
                return index
        owner = self._groups.owner_of_param(key)
        if owner is None:
            raise KeyError(f"state of what is no parameter of {' or '.join(self._groups.labels)}: {key!r:.200}")
        return owner
