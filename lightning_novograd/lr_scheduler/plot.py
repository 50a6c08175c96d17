"""Pictures of learning-rate schedules. matplotlib is imported when one is drawn."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import LRScheduler, SequentialLR

from lightning_novograd.lr_scheduler.base import ClosedFormLR, Phase
from lightning_novograd.lr_scheduler.curves import Curves, lr_curves, own_length, sampled_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

__all__ = ["lr_curves", "own_length", "plot_schedule"]

_LONGEST_NAME = 70  # of a param group, in the legend
_LONGEST_MARK = 24  # of a phase or member, in the picture
# Where the highest LRs of param groups are further apart, the axis is logarithmic
_LINEAR_RATIO = 20
# In points: what a letter of a mark takes, along and across; the axes, nearly; a stripe of curves that are equal
_LETTER, _LINE, _WIDTH, _HEIGHT, _STRIPE = 5.5, 12, 470, 230, 6


@dataclass(frozen=True)
class Drawing:
    """What is drawn of a schedule: its curves, sampled at `positions`, for so many `steps`."""

    scheduler: LRScheduler
    steps: int
    title: str
    xlabel: str
    phases: list[Phase]
    positions: list[int]
    curves: Curves


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
    return plot_schedules([drawing(scheduler, steps, title=title, xlabel=xlabel)])


def drawing(
    scheduler: LRScheduler, steps: int | None = None, *, title: str = "", xlabel: str = "optimizer step"
) -> Drawing:
    """What `plot_schedule` draws; arguments and exceptions as there."""
    if steps is None:
        steps = own_length(scheduler)
        if steps is None:
            raise ValueError(f"{type(scheduler).__name__} has no end of its own: say how many steps to draw")
    phases = _phases(scheduler)
    positions, curves = sampled_curves(scheduler, steps, (phase.first_step for phase in phases))
    return Drawing(scheduler, steps, title or type(scheduler).__name__, xlabel, phases, positions, curves)


def plot_schedules(drawings: Sequence[Drawing]) -> "Figure":
    """The pictures of one or several schedules below each other, each with axes and a legend of its own."""
    from matplotlib.figure import Figure

    labels = [_labels(one) for one in drawings]
    columns = [_columns(of_one) for of_one in labels]
    heights = [4.3 + 0.2 * math.ceil(len(of_one) / n) for of_one, n in zip(labels, columns, strict=True)]
    figure = Figure(figsize=(8, sum(heights)), layout="constrained")
    parts: Any = [figure] if len(drawings) == 1 else figure.subfigures(len(drawings), 1, height_ratios=heights)
    for part, one, of_one, n in zip(parts, drawings, labels, columns, strict=True):
        _draw(part, one, of_one, n)
    return figure


def _draw(figure: "FigureBase", one: Drawing, labels: list[str], columns: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes = figure.add_subplot()
    equal, drawn = Counter(map(tuple, one.curves)), Counter[tuple[float, ...]]()
    for color, curve, label in zip(_colors(len(one.curves)), one.curves, labels, strict=True):
        # step k lasts from k to k + 1, the last one too
        values, x = [*curve, curve[-1]], [*one.positions, one.steps]
        style = _stripes(drawn[tuple(curve)], equal[tuple(curve)])
        drawn[tuple(curve)] += 1
        axes.plot(x, values, drawstyle="steps-post", linestyle=style, color=color, label=label)
    axes.set(xlabel=one.xlabel, ylabel="learning rate", title=one.title, xlim=(0, one.steps))
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    _scale(axes, [max(curve) for curve in one.curves], _mark(axes, one.phases, one.steps))
    handles, _ = axes.get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower right", ncols=columns)
    for line in legend.get_lines():
        line.set_linestyle("-")  # too short for the stripes


def _phases(scheduler: LRScheduler) -> list[Phase]:
    """The phases of one of our schedules, or the members of a SequentialLR."""
    if isinstance(scheduler, ClosedFormLR):
        return scheduler.phases()
    if not isinstance(scheduler, SequentialLR):
        return []
    starts = [0, *scheduler._milestones]
    ends = [*(start - 1 for start in starts[1:]), None]
    names = [type(member).__name__ for member in scheduler._schedulers]
    return [Phase(name, start, end) for name, start, end in zip(names, starts, ends, strict=True)]


def _labels(one: Drawing) -> list[str]:
    """Of the param groups: the name, and the highest LR."""
    named = enumerate(zip(one.scheduler.optimizer.param_groups, one.curves, strict=True))
    names = (
        (_short(group.get("name", f"group {index}"), _LONGEST_NAME), max(curve)) for index, (group, curve) in named
    )
    return [f"{name} (lr {highest:.4g})" for name, highest in names]


def _columns(labels: list[str]) -> int:
    """Of the legend; about 100 characters fit beside each other."""
    return max(1, min(4, len(labels), 100 // (max(map(len, labels)) + 8)))


def _short(name: str, longest: int) -> str:
    return name if len(name) <= longest else f"{name[: longest - 3]}..."


def _colors(count: int) -> list[str]:
    """As many colours as there are curves; the usual ten if they suffice."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    if count <= 10:
        return [f"C{index}" for index in range(count)]
    return [to_hex(colormaps["turbo"](index / (count - 1))) for index in range(count)]


def _stripes(index: int, count: int) -> Any:
    """The line style of the curve number `index` of `count` equal ones: each is seen for a while, then the next."""
    return "-" if count == 1 else (-index * _STRIPE, (_STRIPE, (count - 1) * _STRIPE))


def _scale(axes: "Axes", highest: list[float], room: float) -> None:
    """The LR axis: logarithmic where groups are far apart, with the share `room` at its top free for marks."""
    top, bottom = max(highest), min((lr for lr in highest if lr > 0), default=0.0)
    if top > _LINEAR_RATIO * bottom > 0:
        bottom /= 10  # where the lowest curve falls to
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(bottom, bottom * (top / bottom) ** (1 / (1 - room)))
    else:
        axes.set_ylim(0, top / (1 - room) or 1.0)


def _mark(axes: "Axes", phases: list[Phase], steps: int) -> float:
    """Shade phases, neighbours differently, and write their names at the top; the share of the height they take."""
    shown = [(p, p.first_step, steps if p.last_step is None else min(p.last_step + 1, steps)) for p in phases]
    shown = [(phase, left, right) for phase, left, right in shown if left < right]
    names = [_short(phase.name, _LONGEST_MARK) for phase, _, _ in shown]
    lies = [
        (right - left) / steps * _WIDTH > _LETTER * len(name) + _LINE
        for name, (_, left, right) in zip(names, shown, strict=True)
    ]
    widths = [(_LETTER * len(name) if lying else _LINE) / _WIDTH for name, lying in zip(names, lies, strict=True)]
    centers = _apart([(left + right) / 2 / steps for _, left, right in shown], widths)
    for index, (name, (_, left, right), lying, center) in enumerate(zip(names, shown, lies, centers, strict=True)):
        axes.axvspan(left, right, color="0.93" if index % 2 == 0 else "0.99", zorder=0)
        axes.annotate(
            name,
            (center, 1.0),
            xycoords="axes fraction",
            xytext=(0, -4),
            textcoords="offset points",
            rotation=0 if lying else 90,  # a warmup is a narrow strip
            ha="center",
            va="top",
            fontsize="small",
            color="0.35",
        )
    heights = [_LINE if lying else _LETTER * len(name) for name, lying in zip(names, lies, strict=True)]
    return (max(heights, default=0) + _LINE) / _HEIGHT


def _apart(centers: list[float], widths: list[float]) -> list[float]:
    """`centers` moved so that what is so wide neither overlaps nor leaves 0..1, as far as there is room."""
    centers, edge = list(centers), 0.0
    for index, width in enumerate(widths):
        centers[index] = max(centers[index], edge + width / 2)
        edge = centers[index] + width / 2
    edge = 1.0
    for index, width in reversed(list(enumerate(widths))):
        centers[index] = min(centers[index], edge - width / 2)
        edge = centers[index] - width / 2
    return centers
