"""Where schedules go on in a resumed run.

Each part of a PartsLR goes on as a schedule on its own would, whether the checkpoint has parts or not: what one rule
changes is of no matter to the others.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lightning_novograd.config import OptimConfig
from lightning_novograd.errors import ConfigError
from lightning_novograd.lr_scheduler.base import ClosedFormLR
from lightning_novograd.lr_scheduler.parts import PartsLR
from lightning_novograd.lr_scheduler.pytorch import GROUP_KEYS, OF_EACH_GROUP, cycled_keys
from lightning_novograd.registry import scheduler_settings
from lightning_novograd.training.checkpoint.differences import differences, shown

Groups = list[dict[str, Any]]
# keys by which a state is known as one of ours or of torch's, beside the settings
_STRUCTURE = {"policy", "arguments", "base_lrs", "last_epoch", "_schedulers"}


class _Part(NamedTuple):
    """A schedule, or the state of one, and the places of the param groups that it drives."""

    schedule: Any
    places: Sequence[int]


class _Placed(NamedTuple):
    """What a schedule is to load (None: nothing, it begins), with what it goes on, and keys not to be restored."""

    state: dict[str, Any] | None
    used: list[str]
    from_config: set[str]


class SchedulePlace:
    """Finds the place of the config's schedule, or of each of its parts, in a checkpoint.

    Args:
        config: what `scheduler` was built from.
        scheduler: the config's; None: it has none.
        states: the schedulers' states in the checkpoint, of which the first is this one's; None: not known.
        step: how often the schedule would have been stepped up to the checkpoint.
        groups: the config's settings of each param group.
        saved: those of the checkpoint.

    """

    def __init__(
        self,
        config: OptimConfig,
        scheduler: Any,
        states: list[Any] | None,
        step: Callable[[], int],
        groups: Groups,
        saved: Groups,
    ) -> None:
        self._config, self._scheduler, self._states, self._step = config, scheduler, states, step
        self._groups, self._saved = groups, saved
        # before `states` is edited
        everywhere = range(len(saved))
        self._parts = [] if scheduler is None else [_Part(scheduler, everywhere)]
        if isinstance(scheduler, PartsLR):
            self._parts = list(map(_Part, members(scheduler), scheduler.parts))
        self._saved_parts = [_Part(state, everywhere) for state in (states or ())[:1]]
        if states and "parts" in states[0]:
            self._saved_parts = list(map(_Part, _members_of(states[0]), states[0]["parts"]))

    def had_schedule(self, place: int) -> bool:
        """Whether the checkpoint has a schedule for a param group."""
        if self._states is None:
            return "initial_lr" in self._saved[place]
        return any(place in part.places for part in self._saved_parts)

    def scheduler_of(self, place: int) -> Any:
        """What schedules a param group now; None: nothing does."""
        return next((part.schedule for part in self._parts if place in part.places), None)

    def find(self) -> tuple[list[str], list[set[str]]]:
        """Edit `states` so that each schedule finds its place.

        Returns:
            With what the run goes on, and for each param group keys that are not to be restored.

        """
        used, from_config = self._lost(), [set[str]() for _ in self._saved]
        new = [self._place(part) for part in self._parts]
        for part, placed in zip(self._parts, new, strict=True):
            used += placed.used
            for place in part.places:
                from_config[place] |= placed.from_config
        if self._states is not None and new:
            self._write(self._states, new)
        return used, from_config

    def _write(self, states: list[Any], new: Sequence[_Placed]) -> None:
        if isinstance(self._scheduler, PartsLR):
            own = self._scheduler.state_dict()
            of_parts = [
                member if placed.state is None else placed.state
                for member, placed in zip(own["_schedulers"], new, strict=True)
            ]
            count = states[0].get("_step_count") if states else None
            states[:1] = [{**own, "_step_count": count or self._step() + 1, "_schedulers": of_parts}]
        elif new[0].state is None:
            states.clear()
        else:
            states[:1] = [new[0].state]

    def _lost(self) -> list[str]:
        """Param groups that no longer have a schedule."""
        places = [
            place for place in range(len(self._saved)) if self.had_schedule(place) and self.scheduler_of(place) is None
        ]
        if not places:
            return []
        constant = f"a constant lr {_lrs([self._saved[place] for place in places])}{self._of(places)}"
        return [f"{constant}, where the schedule stopped that the config no longer has"]

    def _place(self, part: _Part) -> _Placed:
        scheduler, places = part
        saved, name = [self._saved[place] for place in places], _name(scheduler) + self._of(places)
        if self._states is None and any(map(self.had_schedule, places)):
            return _Placed(None, [], set())
        state, joined = self._state_of(part)
        if self._states is not None and is_ours(scheduler):
            lrs = [float(group["lr"]) for group in saved]
            state = state or {"policy": "none", "base_lrs": lrs, "_last_lr": lrs}
            if state.get("policy", "none") == "none":  # others count epochs, or nothing
                state = {**state, "last_epoch": self._step()}
            return _Placed(state, joined, set())
        if state is not None:
            used = _saved_settings(scheduler, state, self._path(scheduler))
            if used is not None:
                return _Placed(state, [text + self._of(places) for text in used] + joined, set())
            if not members(scheduler):  # whose places nobody knows
                step = self._step()
                at = {"last_epoch": step, "_step_count": step + 1, "_last_lr": [group["lr"] for group in saved]}
                went = f"{name} instead of another scheduler, from step {step} and lr {_lrs(saved)}"
                return _Placed({**scheduler.state_dict(), **at}, [went], {*GROUP_KEYS})
        config = [self._groups[place] for place in places]
        begins = f"{name}, which the checkpoint does not have, from its step 0 and lr {_lrs(config)}"
        return _Placed(None, [begins], {"lr", *GROUP_KEYS, *cycled_keys(config[0])})

    def _state_of(self, part: _Part) -> tuple[dict[str, Any] | None, list[str]]:
        """The state of the saved schedule that drove most of a part, as if it had driven all of it and nothing else.

        Returns:
            The state, None if there was no schedule, and which param groups had another one.

        """
        shared = [(len({*saved.places} & {*part.places}), saved) for saved in self._saved_parts]
        most = max((count for count, _ in shared), default=0)
        if most == 0:
            return None, []
        source = next(saved for count, saved in shared if count == most)
        others = [place for place in part.places if place not in source.places]
        had = {self.had_schedule(place) for place in others}
        which = "none" if had == {False} else "another one" if had == {True} else "another one or none"
        joined = [f"{_name(part.schedule)}{self._of(others)}, which had {which}"] if others else []
        return self._regrouped(source.schedule, part.schedule.state_dict(), source.places, part.places), joined

    def _regrouped(
        self, state: Mapping[str, Any], own: Mapping[str, Any], source: Sequence[int], places: Sequence[int]
    ) -> dict[str, Any]:
        """`state`, of param groups at `source`, for those at `places`; what it lacks is as in the groups, or `own`."""
        new = dict(state)
        if [*source] == [*places]:
            return new
        lrs = {
            "base_lrs": [self._saved[place].get("initial_lr", self._saved[place]["lr"]) for place in places],
            "_last_lr": [self._saved[place]["lr"] for place in places],
        }
        for key in state.keys() & OF_EACH_GROUP & {*lrs, *own}:
            known = dict(zip(source, state[key], strict=False))
            rest = lrs.get(key, own.get(key, ()))
            new[key] = [known.get(place, value) for place, value in zip(places, rest, strict=False)]
        if "_schedulers" in state and len(state["_schedulers"]) == len(own.get("_schedulers", ())):
            pairs = zip(state["_schedulers"], own["_schedulers"], strict=True)
            new["_schedulers"] = [self._regrouped(inner, of_own, source, places) for inner, of_own in pairs]
        return new

    def _path(self, scheduler: Any) -> str:
        named = (sched.path for sched in self._config.scheds if sched.name == _name(scheduler))
        return next(named, f"{self._config.path}.sched")

    def _of(self, places: Sequence[int]) -> str:
        """Of which param groups something is said; empty if of all."""
        if len(places) == len(self._saved):
            return ""
        return " of " + ", ".join(str(self._groups[place].get("name", f"param group {place}")) for place in places)


def _saved_settings(scheduler: Any, state: Mapping[str, Any], path: str) -> list[str] | None:
    """Settings that a torch scheduler takes from `state`, where they differ; None: another scheduler's state."""
    if is_ours(scheduler):
        return []
    own = scheduler.state_dict()
    known = _STRUCTURE | scheduler_settings()
    if own.keys() & known != state.keys() & known or len(members(scheduler)) != len(_members_of(state)):
        return None
    used: list[str] = []
    for member, saved in zip(members(scheduler), _members_of(state), strict=True):
        of_member = _saved_settings(member, saved, path)
        if of_member is None:
            return None
        used += of_member
    for name in sorted(scheduler_settings(type(scheduler)) & own.keys() & state.keys() - {"last_epoch"}):
        if name == "total_steps" and own[name] > state[name]:
            problem = f"{_name(scheduler)} of the checkpoint ends after {state[name]} steps and cannot be lengthened"
            raise ConfigError(f"{path}.{name}", f"{own[name]}, but {problem}; CosineAnnealing can")
        label = f"{_name(scheduler)}'s {name.removeprefix('_')}"
        used += differences(label, [state[name]], [own[name]])
    return used


def members(scheduler: Any) -> list[Any]:
    """The schedulers that `scheduler` is made of."""
    return list(getattr(scheduler, "_schedulers", ()))


def leaves(scheduler: Any) -> list[Any]:
    """Those of them that are not made of others; itself, if it is not."""
    return [leaf for member in members(scheduler) for leaf in leaves(member)] or [scheduler]


def is_ours(scheduler: Any) -> bool:
    """Whether it is one of this package's, which goes on at any step."""
    return isinstance(scheduler, ClosedFormLR)


def _members_of(state: Mapping[str, Any]) -> list[Any]:
    return list(state.get("_schedulers", ()))


def _lrs(groups: list[Any]) -> str:
    return ", ".join(shown(group["lr"]) for group in groups)


def _name(scheduler: Any) -> str:
    return type(scheduler).__name__
