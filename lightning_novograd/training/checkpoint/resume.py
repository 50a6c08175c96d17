"""What a checkpoint brings back although the config says otherwise: whoever resumes is told."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer

from lightning_novograd.config import OptimConfig
from lightning_novograd.config.arguments import entry_arguments
from lightning_novograd.errors import ConfigError
from lightning_novograd.lr_scheduler.pytorch import cycled_keys
from lightning_novograd.registry import get_optimizer
from lightning_novograd.training.checkpoint.differences import differences
from lightning_novograd.training.checkpoint.place import Groups, SchedulePlace, is_ours, leaves

# optimizers that can go on from each other's state
_SAME_STATE = {"Adam", "AdamW"}


class ResumeCheck:
    """Compares a checkpoint with the config when the optimizer loads its state, and warns where they differ.

    torch restores an optimizer's settings, and those of its own schedulers, from the checkpoint; the warning names them
    and what the config has. Our schedulers use the config's and say so themselves (`ClosedFormLR.load_state_dict`).
    Settings that the checkpoint lacks are the config's.

    Where the checkpoint has no schedule, one of ours goes on at the run's step and one of torch's begins. Where it has
    another, one of torch's goes on at the run's step, from the LR there, with the config's settings. Each rule's
    schedule does so by itself (`SchedulePlace`).

    Args:
        config: what `built` was built from.
        built: optimizer and scheduler, as `build_optimizers` returns them.
        saved_schedulers: the states in the checkpoint, in the list from which they will be loaded; None: not known.
        saved_optimizer: the name of the optimizer in the checkpoint; None: not known.
        step: how often the scheduler would have been stepped up to the checkpoint.
        place: of its state among those of several optimizers; None: there is one optimizer.
        check_parameters: called with the optimizer when its param groups are as large as the saved ones.

    Raises:
        ConfigError: when the state of one optimizer is loaded into another, which could not go on from it, or that of
            one parameter into another.

    """

    def __init__(
        self,
        config: OptimConfig,
        built: Mapping[str, Any],
        saved_schedulers: Callable[[], list[Any] | None],
        saved_optimizer: Callable[[], str | None],
        step: Callable[[], int],
        place: int | None = None,
        check_parameters: Callable[[Optimizer], None] | None = None,
    ) -> None:
        self._config, self._saved_schedulers, self._step = config, saved_schedulers, step
        self._saved_optimizer, self._index = saved_optimizer, place
        self._check_parameters = check_parameters
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
        place = SchedulePlace(self._config, self._scheduler, states, self._step, config, saved)
        of_schedule, from_config = place.find()
        used = self._of_groups(config, saved, place, from_config) + of_schedule
        if used:
            warnings.warn(
                f"the checkpoint and the config differ; the run goes on with {'; '.join(used)}. To change a setting of "
                "the optimizer within a run, assign it to its param groups in on_train_start",
                UserWarning,
                stacklevel=2,
            )
        self._put_back(states)
        merged = [{**new, **old} for new, old in zip(config, saved, strict=True)]
        for group, new, keys in zip(merged, config, from_config, strict=True):
            group.update({key: new[key] for key in keys & new.keys()})
        return {**state_dict, "param_groups": merged}

    def _check_groups(self, optimizer: Optimizer, saved: Groups) -> None:
        """Refuse a state of other param groups: rules cannot change within a run."""
        sizes, saved_sizes = ([len(group["params"]) for group in groups] for groups in (optimizer.param_groups, saved))
        names, saved_names = (
            [str(group.get("name")) for group in groups] for groups in (optimizer.param_groups, saved)
        )
        if sizes != saved_sizes or (names != saved_names and sorted(names) == sorted(saved_names)):
            found = ", ".join(f"{group.get('name', 'default')} ({len(group['params'])})" for group in saved)
            made = ", ".join(
                f"{group.get('name', 'default')} ({len(group['params'])})" for group in optimizer.param_groups
            )
            problem = (
                f"the checkpoint has the param groups {found}, with their numbers of tensors, the config makes {made}"
            )
            how = (
                "rules, their order and no_decay stay as they are within a run; to change them, load the weights alone"
            )
            raise ConfigError(f"{self._config.path}.param_groups", f"{problem}; {how} (load_from_checkpoint)")
        if self._check_parameters is not None:
            self._check_parameters(optimizer)

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

    def _of_groups(self, config: Groups, saved: Groups, place: SchedulePlace, from_config: list[set[str]]) -> list[str]:
        """The optimizer's settings that the checkpoint brings back."""
        settings = {key for spec in self._config.optimizers for key in entry_arguments(get_optimizer(spec.name))}
        settings |= {key for group in config for key in group if key.startswith("larc")}
        keys = [_compared(group, settings, place, index) - from_config[index] for index, group in enumerate(config)]
        return [
            difference
            for key in sorted(set().union(*keys))
            for difference in differences(key, *_values(key, keys, saved, config))
        ]


def _compared(group: Mapping[str, Any], settings: set[str], place: SchedulePlace, index: int) -> set[str]:
    """Keys of a param group that the checkpoint brings back and no schedule sets."""
    keys, scheduler, had_schedule = settings & group.keys(), place.scheduler_of(index), place.had_schedule(index)
    if scheduler is None:
        return keys - {"lr"} if had_schedule else keys
    keys -= {"lr", *cycled_keys(group)}
    return keys | {"initial_lr", "max_lr"} if had_schedule and not all(map(is_ours, leaves(scheduler))) else keys


def _values(key: str, keys: list[set[str]], saved: Groups, config: Groups) -> tuple[list[Any], list[Any]]:
    """The values of all groups; where it is not compared, or absent on one side, equal ones."""
    both = [
        (old[key], new[key]) if key in compared and key in old and key in new else (None, None)
        for compared, old, new in zip(keys, saved, config, strict=True)
    ]
    return [old for old, _ in both], [new for _, new in both]


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}
