"""The base of every learning-rate policy: a pure function of the step as a torch LRScheduler."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_novograd.errors import ConfigError
from lightning_novograd.lr_scheduler.watch import StepWatch


class ScheduleError(ConfigError):
    """A schedule that cannot exist; `path` is the name of the argument at fault."""


class Phase(NamedTuple):
    """A named stretch of a schedule, both ends included; `last_step` is None where it never ends."""

    name: str
    first_step: int
    last_step: int | None


class ClosedFormLR(LRScheduler):
    """`lr = formula(step, base_lr, **arguments)` for each param group, `base_lr` being the group's own initial LR.

    A policy is a pure function and a constructor that checks arguments and passes them on by the function's names::

        class ExponentialLR(ClosedFormLR):
            formula = staticmethod(lambda step, base_lr, *, gamma: base_lr * gamma**step)

            def __init__(self, optimizer, *, gamma, last_epoch=-1):
                super().__init__(optimizer, last_epoch=last_epoch, gamma=gamma)

    As with torch's LambdaLR, `step()` sets the LR from the closed form, whatever it was before: schedulers of this kind
    follow each other in a SequentialLR, but do not multiply in a ChainedScheduler.

    Args:
        optimizer: any torch Optimizer; `lr` may be a Tensor, which is then written in place.
        last_epoch: step to continue from, -1 for a new run. Otherwise every group needs `initial_lr`.
        **arguments: keyword arguments of `formula`; plain Python values, they become part of the state.

    A param group whose `lr` is a factor times that of others says so under `lr_factor`, as those of `layer_decay` and
    `lr_mult` in the optim block do. Its LR is `factor * formula(step, base_lr / factor)`: the others' curve times the
    factor, `min_lr` included.

    Where the optimizer makes many more than `steps_apart` steps between two of the schedule's own, a warning says so
    once: a host that steps it once per epoch. None is for a schedule that is meant to count something else.

    State: `last_epoch`, `_step_count`, `base_lrs`, `_last_lr`, `policy`, `arguments`, all plain Python values.

    Raises:
        ScheduleError: an argument that cannot work, here or, for a group that `add_param_group` brought, in `step`.

    """

    formula: ClassVar[Callable[..., float]]
    uses_base_lr: ClassVar[bool] = True
    steps_apart: int | None = 1

    def __init__(self, optimizer: Optimizer, *, last_epoch: int = -1, **arguments: Any) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{type(optimizer).__name__} is not an Optimizer")
        self.arguments = arguments
        self._watch = StepWatch()
        self._factors: list[float] = []
        for index, group in enumerate(optimizer.param_groups):
            self._add_factor(index, group, float(group.get("initial_lr", group["lr"])))
        super().__init__(optimizer, last_epoch)
        # As floats, so that a step with an LR tensor on a GPU does not wait for the GPU.
        self.base_lrs = [float(lr) for lr in self.base_lrs]

    def check_base_lr(self, index: int, base_lr: float) -> None:
        """Refuse a base LR that the policy cannot use: here, one below `min_lr`."""
        min_lr = self.arguments.get("min_lr", 0.0)
        if min_lr > base_lr:
            problem = f"{min_lr} is above the learning rate of param group {index}, {base_lr:.6g}; must be at most that"
            raise ScheduleError("min_lr", problem)

    def lr_at(self, step: int, base_lr: float, factor: float = 1.0) -> float:
        """The LR that optimizer step number `step` (from 0) sees in a group whose initial LR is `base_lr`.

        Args:
            step: number of optimizer steps before it.
            base_lr: of the group, its factor included.
            factor: what the group's `lr`, and with it the whole curve, is multiplied with, >= 0.

        """
        if factor == 0:
            return 0.0
        return factor * type(self).formula(step, base_lr / factor, **self.arguments)

    def bases(self) -> list[tuple[float, float]]:
        """Initial LR and factor of each param group, of those too that were added since the last step."""
        groups = self.optimizer.param_groups
        added = groups[len(self.base_lrs) :]
        base_lrs = [*self.base_lrs, *(group.get("initial_lr", group["lr"]) for group in added)][: len(groups)]
        factors = self._factors + [_factor_of(group) for group in groups[len(self._factors) :]]
        return [(float(lr), factor) for lr, factor in zip(base_lrs, factors, strict=True)]

    def _add_factor(self, index: int, group: Mapping[str, Any], base_lr: float) -> None:
        """Take the factor of a group, once its base LR has been found good."""
        factor = _factor_of(group)
        try:
            if factor:
                # a product divided by its factor may be a last digit less than the number that was multiplied
                self.check_base_lr(index, base_lr if factor == 1 else base_lr / factor * (1 + 1e-12))
        except ScheduleError as error:
            if factor == 1:
                raise
            said = f"{error.problem} (before its factor, {factor:.6g}, which the schedule's own LRs get too)"
            raise ScheduleError(error.path, said) from None
        self._factors.append(factor)

    def phases(self) -> list[Phase]:
        """The schedule's phases in order, without gaps, from step 0 to the last annealing step."""
        return []

    def __setstate__(self, state: dict[str, Any]) -> None:
        # which a schedule pickled by an older version lacks
        self.__dict__.update({"_watch": StepWatch(), "_factors": [], **state})

    def step(self, epoch: int | None = None) -> None:
        """Set the LR of the next optimizer step."""
        if epoch is None:
            self._watch.on_step(self.optimizer, type(self).__name__, self.steps_apart)
        else:
            self._watch.restart()
        super().step(epoch)

    def _update_lr(self, epoch: int | None = None) -> None:
        # a SequentialLR begins its members so, long after they were built
        if epoch is not None:
            self._watch.restart()
        super()._update_lr(epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The LR of each param group at `last_epoch`."""
        self._take_added()
        return [self.lr_at(self.last_epoch, *base) for base in self.bases()]

    def _lrs_here(self) -> list[float]:
        """Those; of a SequentialLR's member that has not begun, at step -1, those that its predecessor has set."""
        if self.last_epoch >= 0:
            return [float(lr) for lr in self.get_lr()]
        self._take_added()
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def _take_added(self) -> None:
        for index, group in enumerate(self.optimizer.param_groups):
            self._take(index, group)

    def _take(self, index: int, group: dict[str, Any]) -> None:
        """Begin with a group that has been added."""
        if index == len(self.base_lrs):
            if "initial_lr" not in group:
                group["initial_lr"] = float(group["lr"])
                warnings.warn(
                    f"param group {index} was added after the schedule was built and without an initial_lr: the "
                    f"schedule takes its lr, {group['initial_lr']:.6g}, as the LR to start from; if it is meant "
                    "otherwise, use add_param_group({'params': ..., 'initial_lr': ...})",
                    UserWarning,
                    stacklevel=2,
                )
            self._add_factor(index, group, float(group["initial_lr"]))
            self.base_lrs.append(float(group["initial_lr"]))

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule is and what it was built with, in plain Python values."""
        return {
            "last_epoch": self.last_epoch,
            "_step_count": self._step_count,
            "base_lrs": [float(lr) for lr in self.base_lrs],
            "_last_lr": [float(lr) for lr in self._last_lr],
            "policy": type(self).__name__,
            "arguments": dict(self.arguments),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue at the saved step, with this scheduler's arguments and base LRs.

        Where they differ from the saved ones, the new ones hold from this step on and a warning names them: the LR is
        the new schedule's at the saved step, which may be a jump. A param group's `lr` is set unless someone else has
        set it since (the active member of a SequentialLR, a callback).

        Args:
            state_dict: from `state_dict`; of another scheduler's state only the step and the base LRs are looked at.

        """
        if "last_epoch" not in state_dict:
            raise ScheduleError("last_epoch", f"missing in the scheduler state, which has: {', '.join(state_dict)}")
        saved_base_lrs = [float(lr) for lr in state_dict.get("base_lrs", ())]
        saved_lrs = [float(lr) for lr in state_dict.get("_last_lr", ())]
        own_lrs = [float(lr) for lr in self._last_lr]
        changes = self._changes(state_dict, saved_base_lrs)

        self._watch.restart()
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = state_dict.get("_step_count", self.last_epoch + 1)
        self.base_lrs.extend(saved_base_lrs[len(self.base_lrs) :])  # groups that the saved run had added
        lrs = self._lrs_here()
        self._last_lr = []
        for index, (group, lr) in enumerate(zip(self.optimizer.param_groups, lrs, strict=True)):
            assign(group, "initial_lr", float(self.base_lrs[index]))
            if float(group["lr"]) in (*own_lrs[index : index + 1], *saved_lrs[index : index + 1]):
                assign(group, "lr", lr)
            old = group["lr"]
            self._last_lr.append(torch.full_like(old, lr) if isinstance(old, Tensor) else lr)
        if changes:
            warnings.warn(
                f"{type(self).__name__} resumes at step {self.last_epoch} with other settings than it was saved with: "
                f"{'; '.join(changes)}. The new settings are used from this step on: lr {_listed(saved_lrs)} -> "
                f"{_listed(lrs)}",
                UserWarning,
                stacklevel=2,
            )

    def _changes(self, state: Mapping[str, Any], saved_base_lrs: list[float]) -> list[str]:
        policy = state.get("policy", "another scheduler")
        if policy != type(self).__name__:
            changes = [f"policy {policy} -> {type(self).__name__}"]
        else:
            saved = state["arguments"]
            changes = [
                f"{name} {saved.get(name)} -> {value}"
                for name, value in self.arguments.items()
                if saved.get(name) != value
            ]
        for index, (old_lr, new_lr) in enumerate(zip(saved_base_lrs, self.base_lrs, strict=False)):
            if not math.isclose(old_lr, float(new_lr), rel_tol=1e-6):  # an LR tensor may be float32
                changes.append(f"lr of param group {index} {old_lr} -> {new_lr}")
        return changes


def _factor_of(group: Mapping[str, Any]) -> float:
    return float(group.get("lr_factor", 1.0))


def assign(group: dict[str, Any], key: str, value: float) -> None:
    """Set `group[key]`, a tensor in place: a captured graph reads its LR from that very tensor."""
    if isinstance(group.get(key), Tensor):
        group[key].fill_(value)
    else:
        group[key] = value


def _listed(values: list[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values) or "unknown"
