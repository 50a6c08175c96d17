"""No legend of a picture lies on a curve: all are outside of the axes."""

import importlib.util

import pytest
from conftest import ROOT
from matplotlib.figure import Figure

from lightning_novograd.training.callbacks.pictures import NoiseCurves, draw_noise

CURVES = NoiseCurves(
    steps=[1, 2, 3], scale=[10.0, 500.0, 400.0], batch_size=[64.0] * 3, sq_gradient=[3.0, 2.0, 1.0], trace=[30.0] * 3
)


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    saved: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: saved.append(figure))
    return saved


def covered(figure: Figure) -> list[str]:
    """Titles of axes that a legend lies on."""
    figure.draw_without_rendering()
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend() is not None)]
    assert legends
    boxes = [legend.get_window_extent().padded(-1) for legend in legends]
    return [axes.get_title() for axes in figure.axes if any(axes.bbox.overlaps(box) for box in boxes)]


def test_the_noise_scale(figures, tmp_path):
    draw_noise(CURVES, tmp_path / "a.png")
    [figure] = figures
    assert covered(figure) == []


def test_large_batches(figures, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location("large_batch_report", ROOT / "benchmarks" / "large_batch_report.py")
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    runs = sorted((ROOT / "benchmarks" / "results").glob("large_batch_*.jsonl"))
    report.write_report(runs[:1], tmp_path / "page.md")
    [figure] = figures
    assert covered(figure) == []
