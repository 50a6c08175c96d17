"""Pictures of schedules: the numbers drawn, the phases marked, and nothing disturbed."""

import copy
import subprocess
import sys
import warnings

import pytest
import torch

from lightning_novograd import lr_scheduler
from lightning_novograd.lr_scheduler import curves
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


# ---------------------------------------------------------------------------------------------- added groups


def test_a_group_that_was_added_after_the_schedule_was_built_is_drawn():
    optimizer = make_optimizer()
    scheduler = lr_scheduler.CosineAnnealing(optimizer, max_steps=50)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.01, "name": "added"})
    for _ in range(2):
        (axes,) = plot_schedule(scheduler).axes
        assert [line.get_label() for line in axes.lines][2] == "added (lr 0.01)"
        assert axes.lines[2].get_ydata()[0] == 0.01
    long = lr_scheduler.CosineAnnealing(optimizer, max_steps=50_000)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.01})
    with warnings.catch_warnings(action="error"):
        assert plot_schedule(long).axes[0].lines[3].get_ydata()[0] == 0.01
    assert "initial_lr" not in optimizer.param_groups[3]
    optimizer.param_groups[2]["initial_lr"] = 0.05
    assert lr_curves(scheduler, 3)[2] == [scheduler.lr_at(step, 0.05) for step in range(3)]


# ---------------------------------------------------------------------------------------------- many steps

TORCHS = {
    "StepLR": {"step_size": 10_000},
    "MultiStepLR": {"milestones": [100, 9000]},
    "ConstantLR": {"total_iters": 200},
    "LinearLR": {"total_iters": 15_000},
    "ExponentialLR": {"gamma": 0.9999},
    "PolynomialLR": {"total_iters": 19_000},
    "CosineAnnealingLR": {"T_max": 20_000},
    "CosineAnnealingWarmRestarts": {"T_0": 300, "T_mult": 2},
    "OneCycleLR": {"max_lr": [0.1, 0.02], "total_steps": 20_000},
    "CyclicLR": {"base_lr": [0.1, 0.02], "max_lr": [0.2, 0.04], "step_size_up": 3000},
}


@pytest.mark.parametrize("position", [0, 3])
@pytest.mark.parametrize("name", TORCHS)
def test_samples_are_the_lrs_that_stepping_gives(name, position, monkeypatch):
    monkeypatch.setattr(curves, "_MOST_STEPS", 100)
    optimizer = make_optimizer()
    optimizer.defaults["momentum"] = 0.0
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **TORCHS[name])
    for _ in range(position):
        optimizer.step()
        scheduler.step()
    before = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    steps = 19_000
    positions, sampled = curves.sampled_curves(scheduler, steps, edges=[9000])
    assert (optimizer.state_dict(), scheduler.state_dict()) == before
    assert {0, 8999, 9000, steps - 1} <= {*positions}
    assert len(positions) < 4010
    for samples, curve in zip(sampled, lr_curves(scheduler, steps), strict=True):
        assert samples == pytest.approx([curve[step] for step in positions], rel=1e-6, abs=1e-9)


def test_samples_of_our_policies_and_of_sequences(monkeypatch):
    monkeypatch.setattr(curves, "_MOST_STEPS", 100)
    optimizer = make_optimizer()
    members = [
        lr_scheduler.WarmupPolicy(optimizer, warmup_steps=5000),
        torch.optim.lr_scheduler.StepLR(optimizer, 3000),
        lr_scheduler.CosineAnnealing(optimizer, max_steps=10_000),
    ]
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, members, [5000, 15_000])
    positions, sampled = curves.sampled_curves(scheduler, 25_000, edges=[5000, 15_000])
    stepped = lr_curves(scheduler, 25_000)
    for samples, curve in zip(sampled, stepped, strict=True):
        assert samples == pytest.approx([curve[step] for step in positions], rel=1e-9)


# ---------------------------------------------------------------------------------------------- legibility


def groups_of(lrs):
    return [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs]


def test_the_legend_has_the_lrs_that_are_reached():
    noam = lr_scheduler.NoamAnnealing(torch.optim.SGD(groups_of([1.0, 0.5]), lr=1), d_model=64, warmup_steps=100)
    figure = plot_schedule(noam, 300)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["group 0 (lr 0.0125)", "group 1 (lr 0.00625)"]


def test_equal_curves_are_all_seen():
    """Each takes its turn along the line."""
    optimizer = torch.optim.SGD(groups_of([0.1, 0.02, 0.1, 0.1]), lr=1)
    lines = plot_schedule(lr_scheduler.CosineAnnealing(optimizer, max_steps=50)).axes[0].lines
    patterns = [line._unscaled_dash_pattern for line in lines]
    (offsets, dashes) = zip(*[patterns[index] for index in (0, 2, 3)], strict=True)
    assert len({*offsets}) == 3
    assert {tuple(pattern) for pattern in dashes} == {(6, 12)}
    assert lines[1].get_linestyle() == "-"
    assert len({line.get_color() for line in lines}) == 4


@pytest.mark.parametrize(("lowest", "scale"), [(0.1, "linear"), (0.01, "linear"), (0.001, "log"), (0.0, "linear")])
def test_groups_far_apart_have_a_logarithmic_axis(lowest, scale):
    optimizer = torch.optim.SGD(groups_of([0.1, lowest]), lr=1)
    axes = plot_schedule(lr_scheduler.CosineAnnealing(optimizer, max_steps=50)).axes[0]
    assert axes.get_yscale() == scale
    bottom, top = axes.get_ylim()
    assert bottom <= lowest / 10 or scale == "linear"
    assert top > 0.1


def test_twenty_groups_are_told_apart_by_colour():
    optimizer = torch.optim.SGD(groups_of([0.1 * 0.8**depth for depth in range(20)]), lr=1)
    figure = plot_schedule(lr_scheduler.CosineAnnealing(optimizer, max_steps=50))
    assert figure.axes[0].get_yscale() == "log"
    assert len({line.get_color() for line in figure.axes[0].lines}) == 20


def test_members_of_a_sequence_are_marked():
    optimizer = make_optimizer()
    members = [lr_scheduler.WarmupPolicy(optimizer, warmup_steps=5), torch.optim.lr_scheduler.StepLR(optimizer, 3)]
    axes = plot_schedule(torch.optim.lr_scheduler.SequentialLR(optimizer, members, [5]), 30).axes[0]
    assert [text.get_text() for text in axes.texts] == ["WarmupPolicy", "StepLR"]
    assert [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches] == [(0, 5), (5, 30)]


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: lr_scheduler.CosineAnnealing(o, max_steps=10_000, warmup_steps=1, constant_steps=1),
        lambda o: lr_scheduler.WarmupHoldPolicy(o, max_steps=10_000, warmup_steps=1, hold_steps=1),
        lambda o: lr_scheduler.CosineAnnealing(o, max_steps=20, warmup_steps=8, constant_steps=3),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [lr_scheduler.WarmupHoldAnnealOneMinusSquareRoot(o, max_steps=9) for _ in range(5)],
            [1, 2, 9_990, 9_995],
        ),
    ],
    ids=["edges", "narrow", "wide", "many"],
)
@pytest.mark.parametrize("lrs", [[0.1], [0.1 * 0.7**depth for depth in range(20)]], ids=["linear", "log"])
def test_marks_stay_in_the_axes_apart_from_each_other_and_above_the_curves(schedule, lrs):
    figure = plot_schedule(schedule(torch.optim.SGD(groups_of(lrs), lr=1)), 10_001)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    inside, boxes = axes.get_window_extent(), [text.get_window_extent() for text in axes.texts]
    highest = axes.transData.transform((0, max(line.get_ydata()[:-1].max() for line in axes.lines)))[1]
    for index, box in enumerate(boxes):
        assert inside.x0 < box.x0 < box.x1 < inside.x1
        assert highest < box.y0 < box.y1 < inside.y1
        assert not any(box.overlaps(other) for other in boxes[:index])
