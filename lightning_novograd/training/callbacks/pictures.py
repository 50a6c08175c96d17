"""The pictures of a run: layers as heat maps, the noise scale as curves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

METRICS = ("grad_norm", "second_moment", "update_ratio", "larc_clip_fraction")
_TITLES = {
    "grad_norm": "gradient norm, log10",
    "second_moment": "second moment, log10",
    "update_ratio": "step / weights, log10",
    "larc_clip_fraction": "clipped by LARC, fraction of steps",
}


@dataclass(frozen=True, kw_only=True)
class NoiseCurves:
    """What was measured of the gradient noise at each of some optimizer steps.

    Args:
        steps: ascending.
        scale: the running noise scale, samples.
        batch_size: the global batch, samples.
        sq_gradient: the running mean of |G|².
        trace: the running mean of tr Σ.

    """

    steps: list[int]
    scale: list[float]
    batch_size: list[float]
    sq_gradient: list[float]
    trace: list[float]


def draw_layers(
    names: Sequence[str], steps: Sequence[int], records: Tensor, path: Path, noise: NoiseCurves | None = None
) -> None:
    """Write a heat map of every metric that has values: layers from top to bottom, optimizer steps from left to right.

    Args:
        names: of the layers.
        steps: of the records, ascending.
        records: (len(steps), len(METRICS), len(names)), NaN where there is no value.
        path: the picture to write.
        noise: the noise scale, drawn below; None: it was not measured.

    """
    from matplotlib.figure import Figure

    shown = [index for index in range(len(METRICS)) if not records[:, index].isnan().all()]
    heights = [min(3 + 0.16 * len(names), 60), *([3] if noise is not None else [])]
    figure = Figure(figsize=(2 + 5 * len(shown), sum(heights)), layout="constrained")
    upper, *lower = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    # each record stands for the steps since the one before
    edges = [steps[0] - (steps[1] - steps[0] if len(steps) > 1 else 1), *steps]
    for axes, index in zip(upper.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown, strict=True):
        values = records[:, index].T
        fraction = METRICS[index] == "larc_clip_fraction"
        if not fraction:
            values = values.log10()
            values = values.masked_fill(~values.isfinite(), math.nan)
        limits = {"vmin": 0.0, "vmax": 1.0} if fraction else {}
        mesh = axes.pcolormesh(edges, range(len(names) + 1), values.numpy(), **limits)
        upper.colorbar(mesh, ax=axes, location="top", label=_TITLES[METRICS[index]])
        axes.set_xlabel("optimizer step")
    axes.invert_yaxis()
    every = max(1, len(names) // 120)
    upper.axes[0].set_yticks([i + 0.5 for i in range(0, len(names), every)], names[::every], fontsize=6)
    if noise is not None:
        _noise_scale(lower[0].subplots(), noise).set_xlabel("optimizer step")
    figure.savefig(path, dpi=110)


def draw_noise(noise: NoiseCurves, path: Path) -> None:
    """Write the running noise scale and the batch over the two means that it is made of."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    _noise_scale(upper, noise)
    lower.plot(noise.steps, noise.sq_gradient, label="|G|², running")
    lower.plot(noise.steps, noise.trace, label="tr Σ, running")
    lower.set(xlabel="optimizer step", yscale="log")
    _legend_above(lower)
    figure.savefig(path, dpi=110)


def _noise_scale(axes: Any, noise: NoiseCurves) -> Any:
    axes.plot(noise.steps, noise.scale, label="noise scale, running")
    axes.plot(noise.steps, noise.batch_size, "--", color="gray", label="global batch")
    axes.set(ylabel="samples", yscale="log")
    _legend_above(axes)
    return axes


def _legend_above(axes: Any) -> None:
    """Where no curve is."""
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
