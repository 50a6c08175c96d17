"""How much depends on the learning rate: a panel for each task, a line for each optimizer."""

from pathlib import Path

from optimizers_results import Results
from optimizers_runs import CONTENDERS, FACTORS, TASKS

TICKS = {0.25: "1/4", 0.5: "1/2", 1.0: "1", 2.0: "2", 4.0: "4"}
LEAST = 0.0005  # half a word: a logarithmic axis has no 0


def draw(results: Results, path: Path) -> None:
    """The dev metric against multiples of the best learning rate of each optimizer; a dot for each other seed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    for axes, (task, about) in zip(figure.subplots(1, len(TASKS)), TASKS.items(), strict=True):
        scale = 100 if about.is_fraction else 1
        for index, name in enumerate(CONTENDERS):
            color = f"C{index}"
            found = results.sweep(task, name)
            values = [scale * max(LEAST, value) for value in found.values()]
            axes.plot(list(found), values, marker="o", markersize=4, color=color, label=name)
            seeds = [scale * max(LEAST, value) for value in results.values(task, name, "dev")[1:]]
            axes.scatter([1.0] * len(seeds), seeds, s=14, facecolors="none", edgecolors=color, linewidths=0.8)
        axes.set_xscale("log", base=2)
        axes.set_xticks([*FACTORS, 1.0], [TICKS[factor] for factor in (*FACTORS, 1.0)])
        axes.set_xlim(0.2, 5)
        axes.xaxis.set_minor_locator(NullLocator())
        if any(len(line.get_xdata()) for line in axes.lines):  # a logarithmic axis of nothing cannot be drawn
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="times the best learning rate of the search", ylabel=f"dev {about.label}", title=about.title)
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    figure.savefig(path, dpi=100)
