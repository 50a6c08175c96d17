"""Pictures of learning-rate schedules. matplotlib is imported when one is drawn."""

import copy
import math
import warnings
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lightning_novograd.lr_scheduler import pytorch
from lightning_novograd.lr_scheduler.base import ClosedFormLR, Phase

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINE_STYLES = ("-", "--", "-.", ":")
_LONGEST_NAME = 70  # of a param group, in the legend


def lr_curves(scheduler: LRScheduler, steps: int) -> list[list[float]]:
    """`curves[group][k]`: the LR that optimizer step `k = 0..steps-1` sees, from the scheduler's position on.

    Closed forms start at step 0 and are evaluated; other schedulers are stepped, then put back with their optimizer.

    Args:
        scheduler: any torch scheduler that needs no metric.
        steps: number of scheduler steps, at least 1.

    Raises:
        TypeError: a ReduceLROnPlateau, whose LR depends on the training.
        ValueError: `steps` below 1, or more than the scheduler can be stepped (OneCycleLR).

    """
    if steps < 1:
        raise ValueError(f"steps: {steps} is out of range; must be at least 1")
    if isinstance(scheduler, ReduceLROnPlateau):
        raise TypeError("ReduceLROnPlateau has no curve: its learning rate depends on the metric it monitors")
    if isinstance(scheduler, ClosedFormLR):
        return [[scheduler.lr_at(step, float(lr)) for step in range(steps)] for lr in scheduler.base_lrs]
    groups = scheduler.optimizer.param_groups
    saved_groups = [{key: copy.deepcopy(value) for key, value in group.items() if key != "params"} for group in groups]
    saved_state = copy.deepcopy(scheduler.state_dict())
    curves: list[list[float]] = [[] for _ in groups]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
            for _ in range(steps):
                for curve, group in zip(curves, groups, strict=True):
                    curve.append(float(group["lr"]))
                scheduler.step()
    finally:
        scheduler.load_state_dict(saved_state)
        for group, saved in zip(groups, saved_groups, strict=True):
            for key, value in saved.items():
                if isinstance(value, Tensor):
                    group[key].copy_(value)  # a captured graph reads its LR from that very tensor
                else:
                    group[key] = value
    return curves


def own_length(scheduler: LRScheduler) -> int | None:
    """Scheduler steps until a schedule has ended, by its own arguments; None if they do not say."""
    if isinstance(scheduler, ClosedFormLR):
        phases = scheduler.phases()
        last_step = phases[-1].last_step if phases else None
        return None if last_step is None else last_step + 1
    return pytorch.own_length(scheduler)


def plot_schedule(
    scheduler: LRScheduler, steps: int | None = None, *, title: str = "", xlabel: str = "optimizer step"
) -> "Figure":
    """Learning rate against scheduler steps, one line per param group, phases shaded and named.

    Args:
        scheduler: any torch scheduler; phases are known of this package's own.
        steps: how many steps to draw, at least 1; None: up to the end of the schedule.
        title: above the axes; by default the scheduler's name.
        xlabel: what the scheduler counts, `"epoch"` for one that is stepped once per epoch.

    Returns:
        A matplotlib Figure of its own (no pyplot, no display): save it with `figure.savefig(path)`.

    Raises:
        ValueError: no `steps`, and the schedule has no end to take them from; or as in `lr_curves`.

    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if steps is None:
        steps = own_length(scheduler)
        if steps is None:
            raise ValueError(f"{type(scheduler).__name__} has no end of its own: say how many steps to draw")
    groups = scheduler.optimizer.param_groups
    labels = [_label(index, group) for index, group in enumerate(groups)]
    # about 100 characters fit beside each other
    columns = max(1, min(4, len(labels), 100 // (max(map(len, labels)) + 8)))
    figure = Figure(figsize=(8, 4.3 + 0.2 * math.ceil(len(labels) / columns)), layout="constrained")
    axes = figure.add_subplot()
    curves = lr_curves(scheduler, steps)
    for index, (curve, label) in enumerate(zip(curves, labels, strict=True)):
        # step k lasts from k to k + 1, the last one too; there are ten colours
        values, style = [*curve, curve[-1]], _LINE_STYLES[index // 10 % len(_LINE_STYLES)]
        axes.plot(range(steps + 1), values, drawstyle="steps-post", linestyle=style, label=label)
    for index, phase in enumerate(scheduler.phases() if isinstance(scheduler, ClosedFormLR) else ()):
        _mark(axes, phase, index, steps)
    axes.set(xlabel=xlabel, ylabel="learning rate", title=title or type(scheduler).__name__, xlim=(0, steps))
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    highest = max(map(max, curves))
    axes.set_ylim(0, 1.2 * highest or 1.0)  # room for the names of the phases
    figure.legend(loc="outside lower right", ncols=columns)
    return figure


def _label(index: int, group: dict[str, Any]) -> str:
    name = group.get("name", f"group {index}")
    short = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."
    return f"{short} (lr {float(group.get('initial_lr', group['lr'])):g})"


def _mark(axes: "Axes", phase: Phase, index: int, steps: int) -> None:
    """Shade a phase, neighbours differently, and write its name at the top."""
    if phase.first_step >= steps:
        return
    left, right = phase.first_step, steps if phase.last_step is None else min(phase.last_step + 1, steps)
    axes.axvspan(left, right, color="0.93" if index % 2 == 0 else "0.99", zorder=0)
    axes.annotate(
        phase.name,
        ((left + right) / 2, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, -4),
        textcoords="offset points",
        rotation=90,  # a warmup is a narrow strip
        ha="center",
        va="top",
        fontsize="small",
        color="0.35",
    )
