"""One scheduler for several, each of which drives some of an optimizer's param groups."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau


class PartsLR(LRScheduler):
    """Steps the schedulers of parts of an optimizer together; their groups have each its own schedule.

    As of torch's SequentialLR and ChainedScheduler, the LRs are the members' business: `get_lr` returns what they have
    set. `base_lrs` and `get_last_lr` are of all param groups of the whole.

    Args:
        optimizer: the whole, whose `param_groups` are those of the parts.
        schedulers: one for each part that has a schedule, each on its part; at least one.

    State: `_step_count`, `_last_lr`, and for each scheduler the places of its param groups in the whole and its state,
    `parts` and `_schedulers`.

    """

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[LRScheduler]) -> None:
        self._schedulers = list(schedulers)
        LRScheduler.__init__(self, optimizer)  # whichever class is between

    def _initial_step(self) -> None:
        # They have set their LRs, and a step would be one too many.
        self._note()
        self._step_count = self.last_epoch + 1

    def _note(self) -> None:
        self.last_epoch = position(self._schedulers[0])
        self._last_lr = self.get_lr()

    @property
    def parts(self) -> list[list[int]]:
        """For each scheduler, the places of its param groups in the whole."""
        places = {id(group): place for place, group in enumerate(self.optimizer.param_groups)}
        return [[places[id(group)] for group in member.optimizer.param_groups] for member in self._schedulers]

    def spread(self, values: Callable[[LRScheduler], Sequence[float]]) -> list[float]:
        """A value for each param group of the whole: that of its scheduler, or its LR if it has none.

        Args:
            values: those of one scheduler, for each of its param groups.

        """
        spread = [float(group["lr"]) for group in self.optimizer.param_groups]
        for member, places in zip(self._schedulers, self.parts, strict=True):
            for place, value in zip(places, values(member), strict=True):
                spread[place] = value
        return spread

    def get_lr(self) -> list[float | Tensor]:
        """The LR of each param group, as its scheduler has set it."""
        lrs = (group["lr"] for group in self.optimizer.param_groups)
        return [lr.clone() if isinstance(lr, Tensor) else lr for lr in lrs]

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Step each scheduler; what is given, as an epoch or a metric, is given to each."""
        for scheduler in self._schedulers:
            scheduler.step(*args, **kwargs)
        self._step_count += 1
        self._note()

    def state_dict(self) -> dict[str, Any]:
        """The count of steps, and the states of the schedulers in their order."""
        return {
            "_step_count": self._step_count,
            "_last_lr": self._last_lr,
            "parts": self.parts,
            "_schedulers": [scheduler.state_dict() for scheduler in self._schedulers],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            ValueError: it is of another number of schedulers, or of one that was not of parts.

        """
        states = state_dict.get("_schedulers", ())
        if len(states) != len(self._schedulers):
            problem = f"the state has {len(states)} schedules of parts, the config {len(self._schedulers)}"
            raise ValueError(f"{type(self).__name__}: {problem}; param_groups must name the same ones")
        for scheduler, state in zip(self._schedulers, states, strict=True):
            scheduler.load_state_dict(state)
        self._step_count = state_dict["_step_count"]
        self._note()


class PlateauPartsLR(PartsLR, ReduceLROnPlateau):
    """The same of a ReduceLROnPlateau: hosts know it by that class and give its `step` the metric."""

    def __getattr__(self, name: str) -> Any:
        # `best`, `num_bad_epochs` and the settings
        if name.startswith("__") or name == "_schedulers":
            raise AttributeError(name)
        return getattr(self._schedulers[0], name)


def parts_scheduler(optimizer: Optimizer, schedulers: Sequence[LRScheduler]) -> PartsLR:
    """One scheduler on the whole `optimizer` for `schedulers`, each on a part of it."""
    plateaus = all(isinstance(scheduler, ReduceLROnPlateau) for scheduler in schedulers)
    return (PlateauPartsLR if plateaus else PartsLR)(optimizer, schedulers)


def position(scheduler: Any) -> int:
    """How often any scheduler has been stepped; ChainedScheduler knows it of its members alone."""
    if hasattr(scheduler, "last_epoch") or not getattr(scheduler, "_schedulers", ()):
        return getattr(scheduler, "last_epoch", 0)
    return position(scheduler._schedulers[0])
