"""Pictures of trainings over the contours of the loss, and of how it depends on the settings."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from lightning_novograd.recipes.deep_linear.network import Run

_LOW, _HIGH = -4.5, 8.5  # of both weights: the part of the plane that is drawn
_BEST, _WORST = 1e-6, 1e2  # losses at the ends of the colors


def draw_paths(runs: Mapping[str, Run], title: str, path: Path) -> None:
    """One panel for each optimizer: its path over the contours of the loss, as in the paper's figures 2 and 6 to 9.

    Args:
        runs: by optimizer, all from the same start.
        title: of the picture.
        path: of the PNG file.
    """
    figure = Figure(figsize=(4 * len(runs), 4.9), layout="constrained")
    for axes, (name, run) in zip(figure.subplots(1, len(runs), sharey=True), runs.items(), strict=True):
        _contours(axes)
        w1, w2 = np.array(run.path).T
        axes.plot(w1, w2, color="tab:red", linewidth=0.8)
        axes.plot(w1[0], w2[0], "o", color="tab:red", markerfacecolor="white")
        if not run.diverged:
            axes.plot(w1[-1], w2[-1], "o", color="tab:red")
        ends = f"diverges at step {len(run.path)}" if run.diverged else f"ends {run.distance:.3f} from the nearer star"
        axes.set_title(f"{name}: {ends}", fontsize=10)
        axes.set_xlabel("$w_1$")
    figure.axes[0].set_ylabel("$w_2$")
    figure.suptitle(title)
    figure.savefig(path, dpi=100)


def _contours(axes: Axes) -> None:
    line = np.linspace(_LOW, _HIGH, 391)
    w1, w2 = np.meshgrid(line, line)
    axes.contourf(w1, w2, np.log10((w1 * w2 - 1) ** 2 + 1e-3), levels=20, cmap="Blues_r", alpha=0.6)
    for sign in (-1.0, 1.0):
        branch = sign * np.geomspace(0.1, 10.0, 300)
        axes.plot(branch, 1 / branch, color="black", linewidth=0.8, linestyle=":")
        axes.plot(sign, sign, "*", color="gold", markeredgecolor="black", markersize=11, zorder=3)
    axes.set(xlim=(_LOW, _HIGH), ylim=(_LOW, _HIGH), aspect="equal")


def draw_map(
    losses: Mapping[str, Sequence[Sequence[float]]],
    across: tuple[str, Sequence[float]],
    up: tuple[str, Sequence[float]],
    title: str,
    path: Path,
) -> None:
    """One heat map for each optimizer: the final loss, dark red where it diverged.

    Args:
        losses: by optimizer; of each value of `up` a row with a loss for each value of `across`.
        across: name and values of the horizontal axis.
        up: name and values of the vertical axis.
        title: of the picture.
        path: of the PNG file.
    """
    figure = Figure(figsize=(3.6 * len(losses) + 0.8, 4.2), layout="constrained")
    panels = figure.subplots(1, len(losses), sharey=True)
    for axes, (name, rows) in zip(panels, losses.items(), strict=True):
        values = np.array([[min(max(loss, _BEST), _WORST) for loss in row] for row in rows])
        image = axes.imshow(values, origin="lower", norm=LogNorm(_BEST, _WORST), cmap="RdYlBu_r", aspect="auto")
        lost = sum(math.isinf(loss) for row in rows for loss in row)
        axes.set_title(f"{name}: {lost} of {values.size} diverge", fontsize=10)
        axes.set_xticks(range(len(across[1])), [f"{value:g}" for value in across[1]], rotation=90)
        axes.set_yticks(range(len(up[1])), [f"{value:g}" for value in up[1]])
        axes.set_xlabel(across[0])
    panels[0].set_ylabel(up[0])
    figure.colorbar(image, ax=panels, label="largest loss of the last 100 steps", extend="both")
    figure.suptitle(title)
    figure.savefig(path, dpi=100)
