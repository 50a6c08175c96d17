"""Pictures of learning-rate schedules. matplotlib is imported when one is drawn."""

import copy
import warnings
from typing import TYPE_CHECKING

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lightning_novograd.closed_form_lr import ClosedFormLR, Phase

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def lr_curves(scheduler: LRScheduler, steps: int) -> list[list[float]]:
    """`curves[group][k]`: the LR that optimizer step `k = 0..steps-1` sees, from the scheduler's position on.

    Closed forms start at step 0 and are evaluated; other schedulers are stepped, then put back with their optimizer.

    Args:
        scheduler: any torch scheduler that needs no metric.
        steps: number of scheduler steps, at least 1.

    Raises:
        TypeError: a ReduceLROnPlateau, whose LR depends on the training.

    """
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


def plot_schedule(scheduler: LRScheduler, steps: int | None = None, *, title: str = "") -> "Figure":
    """Learning rate against optimizer steps, one line per param group, phases shaded and named.

    Args:
        scheduler: any torch scheduler; phases are known of this package's own.
        steps: how many steps to draw; None: up to the end of the last phase.
        title: above the axes; by default the scheduler's name.

    Returns:
        A matplotlib Figure of its own (no pyplot, no display): save it with `figure.savefig(path)`.

    Raises:
        ValueError: no `steps`, and the schedule has no end to take them from.

    """
    from matplotlib.figure import Figure

    phases = scheduler.phases() if isinstance(scheduler, ClosedFormLR) else []
    if steps is None:
        last_step = phases[-1].last_step if phases else None
        if last_step is None:
            raise ValueError(f"{type(scheduler).__name__} has no end of its own: say how many steps to draw")
        steps = last_step + 1
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    groups = scheduler.optimizer.param_groups
    curves = lr_curves(scheduler, steps)
    for index, (curve, group) in enumerate(zip(curves, groups, strict=True)):
        base_lr = float(group.get("initial_lr", group["lr"]))
        axes.plot(range(steps), curve, label=f"{group.get('name', f'group {index}')} (lr {base_lr:g})")
    for index, phase in enumerate(phases):
        _mark(axes, phase, index, steps)
    axes.set(
        xlabel="optimizer step", ylabel="learning rate", title=title or type(scheduler).__name__, xlim=(0, steps - 1)
    )
    highest = max(map(max, curves))
    axes.set_ylim(0, 1.2 * highest or 1.0)  # room for the names of the phases
    figure.legend(loc="outside lower right", ncols=4)
    return figure


def _mark(axes, phase: Phase, index: int, steps: int) -> None:
    """Shade a phase, neighbours differently, and write its name at the top."""
    last_step = steps - 1 if phase.last_step is None else min(phase.last_step, steps - 1)
    if phase.first_step > last_step:
        return
    # half a step to each side: phases meet between steps
    left, right = max(phase.first_step - 0.5, 0), min(last_step + 0.5, steps - 1)
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
