"""Pictures of schedules: the numbers drawn, the phases marked, and nothing disturbed."""

import copy
import subprocess
import sys

import pytest
import torch

from lightning_novograd import lr_scheduler
from lightning_novograd.lr_scheduler.plot import lr_curves, own_length, plot_schedule


def make_optimizer():
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.1},
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.02, "name": "decoder"},
    ]
    return torch.optim.SGD(groups, lr=0.1)


def test_draws_each_group_and_marks_the_phases(tmp_path):
    scheduler = lr_scheduler.CosineAnnealing(make_optimizer(), max_steps=50, warmup_steps=10, constant_steps=5)
    figure = plot_schedule(scheduler)
    (axes,) = figure.axes
    for line, base_lr in zip(axes.lines, (0.1, 0.02), strict=True):
        *lrs, end = line.get_ydata()  # step k lasts from k to k + 1, so the last LR is there twice
        assert lrs == [scheduler.lr_at(step, base_lr) for step in range(51)]
        assert (end, line.get_drawstyle()) == (lrs[-1], "steps-post")
    assert [text.get_text() for text in axes.texts] == ["warmup", "anneal", "constant"]
    assert [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches] == [
        (0, 11),
        (11, 46),
        (46, 51),
    ]
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == ["group 0 (lr 0.1)", "decoder (lr 0.02)"]
    figure.savefig(tmp_path / "lr.png")
    assert (tmp_path / "lr.png").stat().st_size > 5000


def test_phases_beyond_the_drawn_steps_are_left_out():
    scheduler = lr_scheduler.CosineAnnealing(make_optimizer(), max_steps=50, warmup_steps=10)
    (axes,) = plot_schedule(scheduler, steps=8).axes
    assert [text.get_text() for text in axes.texts] == ["warmup"]
    assert [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches] == [(0, 8)]


@pytest.mark.parametrize("position", [0, 3])
def test_torch_schedulers_are_stepped_and_put_back(position):
    optimizer = make_optimizer()
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[0.1, 0.02], total_steps=40)
    for _ in range(position):
        optimizer.step()
        scheduler.step()
    before = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    curves = lr_curves(scheduler, 20)
    assert (optimizer.state_dict(), scheduler.state_dict()) == before
    seen = []
    for _ in range(20):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert [list(lrs) for lrs in zip(*curves, strict=True)] == seen


def test_lr_tensors_are_put_back():
    optimizer = make_optimizer()
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"])
    tensors = [group["lr"] for group in optimizer.param_groups]
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    assert [curve[2] for curve in lr_curves(scheduler, 3)] == pytest.approx([0.025, 0.005])
    assert all(group["lr"] is tensor for group, tensor in zip(optimizer.param_groups, tensors, strict=True))
    assert [tensor.item() for tensor in tensors] == pytest.approx([0.1, 0.02])


def test_a_schedule_without_end_needs_the_number_of_steps():
    scheduler = lr_scheduler.NoamAnnealing(make_optimizer(), d_model=8, warmup_steps=4)
    with pytest.raises(ValueError, match="NoamAnnealing has no end"):
        plot_schedule(scheduler)
    assert plot_schedule(scheduler, steps=30).axes[0].get_xlim() == (0, 30)


@pytest.mark.parametrize("steps", [0, -4])
def test_no_steps_are_refused(steps):
    with pytest.raises(ValueError, match=f"steps: {steps} is out of range; must be at least 1"):
        plot_schedule(lr_scheduler.CosineAnnealing(make_optimizer(), max_steps=9), steps)


@pytest.mark.parametrize(
    ("name", "arguments", "steps"),
    [
        ("OneCycleLR", {"max_lr": 1.0, "total_steps": 20}, 20),
        ("OneCycleLR", {"max_lr": 1.0, "epochs": 2, "steps_per_epoch": 9}, 18),
        ("CosineAnnealingLR", {"T_max": 20}, 21),
        ("StepLR", {"step_size": 20}, None),
    ],
)
def test_the_length_that_torch_schedulers_are_given(name, arguments, steps):
    assert own_length(getattr(torch.optim.lr_scheduler, name)(make_optimizer(), **arguments)) == steps


@pytest.mark.parametrize("names", [["a" * 200], [f"encoder.blocks.{i}.*" for i in range(25)]], ids=["long", "many"])
def test_the_legend_fits_and_tells_the_groups_apart(names):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "name": name} for name in names]
    figure = plot_schedule(lr_scheduler.CosineAnnealing(torch.optim.SGD(groups, lr=0.1), max_steps=9))
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert 0 <= legend.x0 < legend.x1 <= figure.bbox.x1
    assert legend.height < figure.axes[0].get_window_extent().height
    assert len({(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}) == len(names)


@pytest.mark.parametrize(("name", "shown"), [("a" * 70, 70), ("a" * 200, 70), ("a" * 71, 70), ("abc", 3)])
def test_a_name_that_is_too_long_is_cut_to_the_longest(name, shown):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "name": name}]
    figure = plot_schedule(lr_scheduler.CosineAnnealing(torch.optim.SGD(groups, lr=0.1), max_steps=9))
    label = figure.legends[0].get_texts()[0].get_text().removesuffix(" (lr 0.1)")
    assert len(label) == shown
    assert label == name if len(name) <= 70 else label.endswith("a...")


def test_plateau_has_no_curve():
    with pytest.raises(TypeError, match="depends on the metric"):
        lr_curves(torch.optim.lr_scheduler.ReduceLROnPlateau(make_optimizer()), 10)


def test_importing_does_not_import_matplotlib():
    code = "import sys, lightning_novograd.lr_scheduler.plot; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
