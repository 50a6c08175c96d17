"""What a checkpoint brings back although the config says otherwise: whoever resumes is told."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_novograd.config import OptimConfig
from lightning_novograd.config.arguments import entry_arguments
from lightning_novograd.errors import ConfigError
from lightning_novograd.lr_scheduler.base import ClosedFormLR
from lightning_novograd.lr_scheduler.pytorch import GROUP_KEYS, cycled_keys
from lightning_novograd.registry import get_optimizer, scheduler_settings

Groups = list[dict[str, Any]]
# keys by which a state is known as one of ours or of torch's, beside the settings
_STRUCTURE = {"policy", "arguments", "base_lrs", "last_epoch", "_schedulers"}
# optimizers that can go on from each other's state
_SAME_STATE = {"Adam", "AdamW"}


class ResumeCheck:
    """Compares a checkpoint with the config when the optimizer loads its state, and warns where they differ.

    torch restores an optimizer's settings, and those of its own schedulers, from the checkpoint; the warning names them
    and what the config has. Our schedulers use the config's and say so themselves (`ClosedFormLR.load_state_dict`).
    Settings that the checkpoint lacks are the config's.

    Where the checkpoint has no schedule, one of ours goes on at the run's step and one of torch's begins. Where it has
    another, one of torch's goes on at the run's step, from the LR there, with the config's settings.

    Args:
        config: what `built` was built from.
        built: optimizer and scheduler, as `build_optimizers` returns them.
        saved_schedulers: the states in the checkpoint, in the list from which they will be loaded; None: not known.
        saved_optimizer: the name of the optimizer in the checkpoint; None: not known.
        step: how often the scheduler would have been stepped up to the checkpoint.
        place: of its state among those of several optimizers; None: there is one optimizer.

    Raises:
        ConfigError: when the state of one optimizer is loaded into another, which could not go on from it.

    """

    def __init__(
        self,
        config: OptimConfig,
        built: Mapping[str, Any],
        saved_schedulers: Callable[[], list[Any] | None],
        saved_optimizer: Callable[[], str | None],
        step: Callable[[], int],
        place: int | None = None,
    ) -> None:
        self._config, self._saved_schedulers, self._step = config, saved_schedulers, step
        self._saved_optimizer, self._index = saved_optimizer, place
        # as they are now: fine-tuning callbacks replace them with the checkpoint's before the optimizer loads its state
        self._groups = [_settings(group) for group in built["optimizer"].param_groups]
        self._scheduler = built["lr_scheduler"]["scheduler"] if "lr_scheduler" in built else None
        built["optimizer"].register_load_state_dict_pre_hook(self._before_load)

    def _before_load(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any] | None:
        own = self._config.optimizer_names
        name = self._saved_optimizer() or own
        if name != own and not {name, own} <= _SAME_STATE:
            problem = f"{own} cannot go on from the state of {name}, which is in the checkpoint"
            how = "load the weights alone (load_from_checkpoint) and fit without ckpt_path"
            raise ConfigError(f"{self._config.path}.name", f"{problem}; to change the optimizer, {how}")
        saved = state_dict["param_groups"]
        self._check_groups(optimizer, saved)
        config = self._groups[: len(saved)] + [_settings(g) for g in optimizer.param_groups[len(self._groups) :]]
        states = self._states()
        had_schedule = any("initial_lr" in group for group in saved) if states is None else bool(states)
        of_schedule, from_config = self._place(states, had_schedule, config, saved)
        used = self._of_groups(config, saved, had_schedule, from_config) + of_schedule
        if used:
            warnings.warn(
                f"the checkpoint and the config differ; the run goes on with {'; '.join(used)}. To change a setting of "
                "the optimizer within a run, assign it to its param groups in on_train_start",
                UserWarning,
                stacklevel=2,
            )
        self._put_back(states)
        merged = [{**new, **old} for new, old in zip(config, saved, strict=True)]
        for group, new in zip(merged, config, strict=True):
            group.update({key: new[key] for key in from_config & new.keys()})
        return {**state_dict, "param_groups": merged}

    def _check_groups(self, optimizer: Optimizer, saved: Groups) -> None:
        """Refuse a state of other param groups: rules cannot change within a run."""
        sizes, saved_sizes = ([len(group["params"]) for group in groups] for groups in (optimizer.param_groups, saved))
        if sizes != saved_sizes:
            found = ", ".join(f"{group.get('name', 'default')} ({len(group['params'])})" for group in saved)
            made = ", ".join(
                f"{group.get('name', 'default')} ({len(group['params'])})" for group in optimizer.param_groups
            )
            problem = (
                f"the checkpoint has the param groups {found}, with their numbers of tensors, the config makes {made}"
            )
            how = "rules and no_decay stay as they are within a run; to change them, load the weights alone"
            raise ConfigError(f"{self._config.path}.param_groups", f"{problem}; {how} (load_from_checkpoint)")

    def _states(self) -> list[Any] | None:
        """The saved schedulers' states; of several optimizers a list with the one that is this one's."""
        states = self._saved_schedulers()
        if states is None or self._index is None:
            return states
        return states[self._index : self._index + 1] if self._scheduler is not None else []

    def _put_back(self, states: list[Any] | None) -> None:
        """Have Lightning load what has become of the state."""
        all_states = self._saved_schedulers()
        if self._index is None or self._scheduler is None or (not states and not all_states):
            return
        if all_states is not None and self._index < len(all_states):
            all_states[self._index] = states[0] if states else self._scheduler.state_dict()

    def _of_groups(self, config: Groups, saved: Groups, had_schedule: bool, from_config: set[str]) -> list[str]:
        """The optimizer's settings that the checkpoint brings back."""
        settings = {key for spec in self._config.optimizers for key in entry_arguments(get_optimizer(spec.name))}
        keys = {key for group in config for key in group if key in settings or key.startswith("larc")}
        if self._scheduler is not None:
            keys -= {"lr", *(key for group in config for key in cycled_keys(group))}
            if had_schedule and not all(map(_is_ours, _leaves(self._scheduler))):
                keys |= {"initial_lr", "max_lr"}
        elif had_schedule:
            keys -= {"lr"}
        return [
            difference
            for key in sorted(keys - from_config)
            for difference in _differences(key, *_values(key, saved, config))
        ]

    def _place(
        self, states: list[Any] | None, had_schedule: bool, config: Groups, saved: Groups
    ) -> tuple[list[str], set[str]]:
        """Edit `states` so that the scheduler finds its place; what it goes on with, and keys not to be restored."""
        scheduler = self._scheduler
        if scheduler is None:
            lost = f"a constant lr {_lrs(saved)}, where the schedule stopped that the config no longer has"
            return [lost] if had_schedule else [], set()
        if states is None and had_schedule:
            return [], set()
        if states is not None and _is_ours(scheduler):
            lrs = [float(group["lr"]) for group in saved]
            state = states[0] if states else {"policy": "none", "base_lrs": lrs, "_last_lr": lrs}
            if state.get("policy", "none") == "none":  # others count epochs, or nothing
                states[:1] = [{**state, "last_epoch": self._step()}]
            return [], set()
        if states:
            used = _saved_settings(scheduler, states[0], f"{self._config.path}.sched")
            if used is not None:
                return used, set()
            if not _members(scheduler):  # whose places nobody knows
                step = self._step()
                place = {"last_epoch": step, "_step_count": step + 1, "_last_lr": [group["lr"] for group in saved]}
                states[0] = {**scheduler.state_dict(), **place}
                went = f"{_name(scheduler)} instead of another scheduler, from step {step} and lr {_lrs(saved)}"
                return [went], {*GROUP_KEYS}
            states.clear()
        begins = f"{_name(scheduler)}, which the checkpoint does not have, from its step 0 and lr {_lrs(config)}"
        return [begins], {"lr", *GROUP_KEYS, *cycled_keys(config[0])}


def _saved_settings(scheduler: Any, state: Mapping[str, Any], path: str) -> list[str] | None:
    """Settings that a torch scheduler takes from `state`, where they differ; None: another scheduler's state."""
    if _is_ours(scheduler):
        return []
    own = scheduler.state_dict()
    known = _STRUCTURE | scheduler_settings()
    if own.keys() & known != state.keys() & known or len(_members(scheduler)) != len(_members_of(state)):
        return None
    used: list[str] = []
    for member, saved in zip(_members(scheduler), _members_of(state), strict=True):
        of_member = _saved_settings(member, saved, path)
        if of_member is None:
            return None
        used += of_member
    for name in sorted(scheduler_settings(type(scheduler)) & own.keys() & state.keys() - {"last_epoch"}):
        if name == "total_steps" and own[name] > state[name]:
            problem = f"{_name(scheduler)} of the checkpoint ends after {state[name]} steps and cannot be lengthened"
            raise ConfigError(f"{path}.{name}", f"{own[name]}, but {problem}; CosineAnnealing can")
        label = f"{_name(scheduler)}'s {name.removeprefix('_')}"
        used += _differences(label, [state[name]], [own[name]])
    return used


def _values(key: str, saved: Groups, config: Groups) -> tuple[list[Any], list[Any]]:
    """The values of all groups; where a group lacks the key on one side, which is no difference, equal ones."""
    both = [
        (old[key], new[key]) if key in old and key in new else (None, None)
        for old, new in zip(saved, config, strict=True)
    ]
    return [old for old, _ in both], [new for _, new in both]


def _differences(key: str, saved: list[Any], config: list[Any]) -> list[str]:
    """What differs in which param group; without the group where all differ alike."""
    pairs = zip(saved, config, strict=True)
    shown = ["" if _same(old, new) else f"{key} {_shown(old)} (config: {_shown(new)})" for old, new in pairs]
    if len(set(shown)) == 1:
        return [shown[0]] if shown[0] else []
    return [f"param group {index}: {text}" for index, text in enumerate(shown) if text]


def _same(old: Any, new: Any) -> bool:
    old, new = _plain(old), _plain(new)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_same, old, new))
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=1e-6)  # an LR tensor may be float32
    return bool(old == new)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):  # MultiStepLR's Counter
        return sorted(value.items())
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    value = _plain(value)
    return f"{value:.6g}" if isinstance(value, float) else f"{value}"


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _lrs(groups: list[Any]) -> str:
    return ", ".join(_shown(group["lr"]) for group in groups)


def _members(scheduler: Any) -> list[Any]:
    return list(getattr(scheduler, "_schedulers", ()))


def _members_of(state: Mapping[str, Any]) -> list[Any]:
    return list(state.get("_schedulers", ()))


def _leaves(scheduler: Any) -> list[Any]:
    return [leaf for member in _members(scheduler) for leaf in _leaves(member)] or [scheduler]


def _is_ours(scheduler: Any) -> bool:
    return isinstance(scheduler, ClosedFormLR)


def _name(scheduler: Any) -> str:
    return type(scheduler).__name__
