"""The learning rates that a schedule will give, without a training."""

import copy
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import lr_scheduler as torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lightning_novograd.lr_scheduler import pytorch
from lightning_novograd.lr_scheduler.base import ClosedFormLR
from lightning_novograd.lr_scheduler.parts import PartsLR

Curves = list[list[float]]

# More points than a picture has columns
_MOST_POINTS = 4000
# What a scheduler that must be stepped is stepped in a few seconds
_MOST_STEPS = 200_000
# torch's without a `_get_closed_form_lr` whose `get_lr` looks at the step alone
_OF_THE_STEP = (torch.OneCycleLR, torch.CyclicLR, torch.LambdaLR)


def lr_curves(scheduler: LRScheduler, steps: int) -> Curves:
    """`curves[group][k]`: the LR that optimizer step `k = 0..steps-1` sees, from the scheduler's position on.

    Closed forms start at step 0 and are evaluated; other schedulers are stepped, then put back with their optimizer.

    Args:
        scheduler: any torch scheduler that needs no metric.
        steps: number of scheduler steps, at least 1.

    Raises:
        TypeError: a ReduceLROnPlateau, whose LR depends on the training.
        ValueError: `steps` below 1, or more than the scheduler can be stepped (OneCycleLR).

    """
    _check(scheduler, steps)
    if isinstance(scheduler, ClosedFormLR):
        return [[scheduler.lr_at(step, *base) for step in range(steps)] for base in scheduler.bases()]
    groups = scheduler.optimizer.param_groups
    curves: Curves = [[] for _ in groups]
    with _put_back(scheduler):
        for _ in range(steps):
            for curve, group in zip(curves, groups, strict=True):
                curve.append(float(group["lr"]))
            scheduler.step()
    return curves


def sampled_curves(scheduler: LRScheduler, steps: int, edges: Iterable[int] = ()) -> tuple[list[int], Curves]:
    """Steps, all or as many as a picture can show, and the LRs of each param group at them, as in `lr_curves`.

    Args:
        scheduler: any torch scheduler that needs no metric.
        steps: number of scheduler steps, at least 1.
        edges: steps at which something begins, which are among those returned, with the steps before them.

    Raises:
        TypeError: as in `lr_curves`.
        ValueError: as there; or very many steps of a scheduler whose LR is known only step by step.

    """
    _check(scheduler, steps)
    if steps <= _MOST_POINTS or (steps <= _MOST_STEPS and not isinstance(scheduler, ClosedFormLR)):
        return list(range(steps)), lr_curves(scheduler, steps)
    # torch's in a chain would have to be stepped one after the other
    if not _has_closed_form(scheduler):
        parts = scheduler._schedulers if isinstance(scheduler, PartsLR) else [scheduler]
        unknown = next(part for part in parts if not _has_closed_form(part))
        raise ValueError(
            f"the LR of {type(unknown).__name__} is known only step by step, and {steps} steps would take long; "
            f"at most {_MOST_STEPS} are drawn"
        )
    wanted = {round(point * (steps - 1) / _MOST_POINTS) for point in range(_MOST_POINTS + 1)}
    wanted |= {step for edge in edges for step in (edge - 1, edge) if 0 <= step < steps}
    positions = sorted(wanted)
    if isinstance(scheduler, ClosedFormLR):
        lrs = [_lrs_at(scheduler, step) for step in positions]
    else:
        start = scheduler.last_epoch
        with _put_back(scheduler):
            lrs = [_lrs_at(scheduler, start + step) for step in positions]
    return positions, [list(curve) for curve in zip(*lrs, strict=True)]


def own_length(scheduler: LRScheduler) -> int | None:
    """Scheduler steps until a schedule has ended, by its own arguments; None if they do not say."""
    if isinstance(scheduler, ClosedFormLR):
        phases = scheduler.phases()
        last_step = phases[-1].last_step if phases else None
        return None if last_step is None else last_step + 1
    if isinstance(scheduler, PartsLR):
        ends = [end for part in scheduler._schedulers if (end := own_length(part)) is not None]
        return max(ends, default=None)
    return pytorch.own_length(scheduler)


def _check(scheduler: LRScheduler, steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps: {steps} is out of range; must be at least 1")
    if isinstance(scheduler, ReduceLROnPlateau):
        raise TypeError("ReduceLROnPlateau has no curve: its learning rate depends on the metric it monitors")


def _has_closed_form(scheduler: Any) -> bool:
    if isinstance(scheduler, torch.SequentialLR | PartsLR):
        return all(map(_has_closed_form, scheduler._schedulers))
    known = (ClosedFormLR, torch.CosineAnnealingWarmRestarts, *_OF_THE_STEP)
    return isinstance(scheduler, known) or hasattr(scheduler, "_get_closed_form_lr")


def _lrs_at(scheduler: Any, step: int) -> list[float]:
    """The LRs at a step of a scheduler with a closed form."""
    if isinstance(scheduler, ClosedFormLR):
        return [scheduler.lr_at(step, *base) for base in scheduler.bases()]
    if isinstance(scheduler, torch.SequentialLR):
        index = bisect_right(scheduler._milestones, step)
        return _lrs_at(scheduler._schedulers[index], step - [0, *scheduler._milestones][index])
    if isinstance(scheduler, PartsLR):
        return scheduler.spread(lambda member: _lrs_at(member, step))
    if isinstance(scheduler, torch.CosineAnnealingWarmRestarts):
        scheduler.step(step)
        return [float(lr) for lr in scheduler.get_last_lr()]
    scheduler.last_epoch = step
    scheduler._get_lr_called_within_step = True
    lrs = scheduler.get_lr() if isinstance(scheduler, _OF_THE_STEP) else scheduler._get_closed_form_lr()
    return [float(lr) for lr in lrs]


@contextmanager
def _put_back(scheduler: LRScheduler) -> Iterator[None]:
    """Leave a scheduler and its optimizer as they were."""
    groups = scheduler.optimizer.param_groups
    saved_groups = [{key: copy.deepcopy(value) for key, value in group.items() if key != "params"} for group in groups]
    saved_state = copy.deepcopy(scheduler.state_dict())
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
            yield
    finally:
        scheduler.load_state_dict(saved_state)
        for group, saved in zip(groups, saved_groups, strict=True):
            for key, value in saved.items():
                if isinstance(value, Tensor):
                    group[key].copy_(value)  # a captured graph reads its LR from that very tensor
                else:
                    group[key] = value
