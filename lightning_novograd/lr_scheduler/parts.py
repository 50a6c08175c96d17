"""One scheduler for several, each of which drives some of an optimizer's param groups."""

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class PartsLR(LRScheduler):
    """Steps the schedulers of parts of an optimizer together; their groups have each its own schedule.

    Args:
        optimizer: the whole, whose `param_groups` are those of the parts.
        schedulers: one for each part that has a schedule, each on its part.

    """

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[LRScheduler]) -> None:
        # They have set their LRs; the base's constructor would step once more.
        self.optimizer = optimizer
        self._schedulers = list(schedulers)
        self._note()

    def _note(self) -> None:
        self.last_epoch = self._schedulers[0].last_epoch
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def step(self, epoch: int | None = None) -> None:
        """Step each scheduler."""
        for scheduler in self._schedulers:
            scheduler.step() if epoch is None else scheduler.step(epoch)
        self._note()

    def state_dict(self) -> dict[str, Any]:
        """The states of the schedulers, in their order."""
        return {"_schedulers": [scheduler.state_dict() for scheduler in self._schedulers], "_last_lr": self._last_lr}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            ValueError: it is of another number of schedulers, or of one that was not of parts.

        """
        states = state_dict.get("_schedulers", ())
        if len(states) != len(self._schedulers):
            problem = f"the state has {len(states)} schedules of parts, the config {len(self._schedulers)}"
            raise ValueError(f"PartsLR: {problem}; param_groups must name the same ones")
        for scheduler, state in zip(self._schedulers, states, strict=True):
            scheduler.load_state_dict(state)
        self._note()
