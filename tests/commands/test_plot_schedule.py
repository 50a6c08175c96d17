"""`python -m lightning_novograd plot-schedule`: a picture, or one line that names file, key and cure."""

import json
import sys

import drawn
import pytest
from conftest import ROOT
from drawn import refused

from lightning_novograd.commands import plot_schedule as command
from lightning_novograd.errors import ConfigError
from lightning_novograd.lr_scheduler import curves
from lightning_novograd.registry import available_schedulers

pytest.importorskip("matplotlib")

RUN = ["--max-steps", "40", "--max-epochs", "8", "--steps-per-epoch", "5"]


plot = drawn.plot


# ---------------------------------------------------------------------------------------------- what is drawn

COSINE = "{name: sgd, lr: 1.0, sched: {name: cosine, max_steps: 40}}"
STEP = "{name: sgd, sched: {name: StepLR, step_size: 3}}"
EPOCHS = "{name: sgd, sched: {name: cosine, t_max_epochs: 5}}"
ENDLESS = "{name: sgd, sched: {name: warmup, warmup_steps: 3}}"


@pytest.mark.parametrize(
    "text",
    [
        "{name: novograd, lr: 0.1, sched: {name: cosine, warmup_steps: 5, max_steps: 40}}",
        "optim: {name: sgd, sched: {name: WarmupPolicy, max_steps: 40}}",
        "model: {optim: {name: sgd, lr: 1, sched: {name: cosine, max_steps: 40}}}",
        "model: {class_path: Net, init_args: {optim: {name: sgd, lr: 1, sched: {name: cosine, max_steps: 40}}}}",
        "{peak: 0.5, optim: {name: sgd, lr: '${peak}', sched: {name: cosine, max_steps: 40}}}",
        "{mine: {name: sgd, sched: {name: cosine, max_steps: 40}}, optim: '${mine}'}",
    ],
)
def test_where_the_block_may_be(text, plot, tmp_path):
    status, out, err, axes = plot(text)
    assert (status, out, err) == (0, "lr.png\n", "")
    assert axes.get_xlim() == (0, 40)
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "text",
    [
        "{name: CosineAnnealing, warmup_steps: 5, max_steps: 40}",
        "sched: {name: cosine, warmup_steps: 5, max_steps: 40}",
        "{name: OneCycleLR, max_lr: 1, total_steps: 40}",
        "{name: StepLR, step_size: 3, interval: step, warmup_steps: 5}",
    ],
)
def test_a_schedule_alone_is_drawn_for_an_lr_of_1(text, plot):
    status, _, err, axes = plot(text, "--max-steps", "40")
    assert (status, err) == (0, "")
    assert axes.get_title() in ("CosineAnnealing", "OneCycleLR", "StepLR")
    assert max(axes.lines[0].get_ydata()) == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize(
    "config",
    [p for p in sorted((ROOT / "conf" / "sched").glob("*.yaml")) if "name:" in p.read_text()],
    ids=lambda p: p.stem,
)
def test_the_recipes_schedules_are_drawn(config, plot):
    status, _, err, _ = plot(config.read_text(), "--max-steps", "400")
    assert (status, err) == (0, "")


def test_a_schedule_alone_with_a_mistake(plot):
    assert refused(plot("{name: cosine, warmup_stesp: 3}")).startswith(
        "conf.yaml: optim.sched.warmup_stesp: unknown key"
    )
    assert refused(plot("{name: cosin}")).startswith("conf.yaml: optim.name: unknown optimizer 'cosin'")


LONG = [
    "cosine",
    "StepLR",
    "OneCycleLR",
    "CyclicLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "SequentialLR",
]


@pytest.mark.parametrize("name", [*LONG, "ExponentialLR", "WarmupPolicy"])
def test_very_long_runs_are_drawn_at_once(name, plot, monkeypatch):
    """Fifty million steps, of which as many are looked at as a picture shows."""
    looked_at = []
    lrs_at = curves._lrs_at
    monkeypatch.setattr(curves, "_lrs_at", lambda *args: looked_at.append(args[1]) or lrs_at(*args))
    sched = {"name": name, "interval": "step", **(NEEDS.get(name) or {})}
    text = json.dumps({"name": "sgd", "lr": 0.1, "momentum": 0.9, "sched": sched})
    status, _, err, axes = plot(text, "--max-steps", "50000000")
    assert (status, err, axes.get_xlim()) == (0, "", (0, 50_000_000))
    assert 4000 <= len(looked_at) < 10_000


def test_very_long_runs_that_would_have_to_be_stepped(plot):
    text = block("ChainedScheduler", {**NEEDS["ChainedScheduler"], "interval": "step"})
    assert "at most 200000 are drawn" in refused(plot(text, "--max-steps", "50000000"))


def test_a_file_of_aliases_of_aliases_is_one_line(plot):
    lines = ["l0: &l0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"] + [
        f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 12)
    ]
    assert refused(plot("\n".join([*lines, "optim: *l11"]))).startswith("conf.yaml: holds more than 100000 values")


@pytest.mark.parametrize(
    ("text", "options", "steps", "xlabel"),
    [
        (COSINE, "", 40, "optimizer step"),
        (COSINE, "--max-steps 100", 100, "optimizer step"),
        (COSINE, "--max-steps 25", 25, "optimizer step"),
        (COSINE, "--max-epochs 3 --steps-per-epoch 20", 60, "optimizer step"),
        (COSINE, "--max-epochs 3 --steps-per-epoch 20 --max-steps 50", 50, "optimizer step"),
        (COSINE.replace("40", "1"), "", 1, "optimizer step"),
        ("{name: sgd, sched: {name: cosine}}", "--max-steps 30", 30, "optimizer step"),
        (EPOCHS, "--steps-per-epoch 20", 100, "optimizer step"),
        (EPOCHS, "--steps-per-epoch 20 --max-epochs 7", 140, "optimizer step"),
        ("{name: sgd, sched: {name: cosine, interval: epoch, max_epochs: 9}}", "", 9, "epoch"),
        (STEP, "--max-epochs 12", 12, "epoch"),
        (STEP, "--max-steps 101 --steps-per-epoch 10", 11, "epoch"),
        (STEP.replace("}}", ", frequency: 2}}"), "--max-epochs 11", 6, "scheduler step, one every 2 epochs"),
        (STEP.replace("}}", ", interval: step}}"), "--max-steps 12", 12, "optimizer step"),
        ("{name: sgd, sched: {name: OneCycleLR, max_lr: 1.0, total_steps: 20}}", "", 20, "optimizer step"),
        ("{name: sgd, sched: {name: OneCycleLR, max_lr: 1, epochs: 2, steps_per_epoch: 9}}", "", 18, "optimizer step"),
        ("{name: sgd, sched: {name: CosineAnnealingLR, T_max: 20}}", "", 21, "epoch"),
        ("{name: sgd, sched: {name: CosineAnnealingLR}}", "--max-epochs 20", 20, "epoch"),
        (ENDLESS, "--max-steps 30", 30, "optimizer step"),
    ],
)
def test_how_much_is_drawn(text, options, steps, xlabel, plot):
    status, _, err, axes = plot(text, *options.split())
    assert (status, err) == (0, "")
    assert (axes.get_xlim(), axes.get_xlabel()) == ((0, steps), xlabel)


def test_one_curve_per_param_group(plot):
    text = "{name: sgd, lr: 1, param_groups: [{match: 'a.*', lr: 0.5}, {match: b, momentum: 0.9}], sched: "
    axes = plot(text + "{name: WarmupHoldPolicy, warmup_steps: 4, max_steps: 40}}")[-1]
    assert [line.get_label() for line in axes.lines] == ["default (lr 1)", "a.* (lr 0.5)", "b (lr 1)"]
    assert [line.get_ydata()[10] for line in axes.lines] == [1.0, 0.5, 1.0]


# What each scheduler cannot do without; None: no file can hold it
NEEDS = {
    "ChainedScheduler": {"schedulers": [{"name": "LinearLR"}, {"name": "ExponentialLR", "gamma": 0.9}]},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "CyclicLR": {"base_lr": 0.1, "max_lr": 0.5},
    "ExpDecay": {"decay_steps": 5, "decay_rate": 0.5, "use_staircase_decay": True},
    "ExponentialLR": {"gamma": 0.9},
    "InvPolyDecay": {"min_lr": 0.01},
    "LambdaLR": None,
    "MultiStepLR": {"milestones": [2, 4]},
    "MultiplicativeLR": None,
    "NoamAnnealing": {"d_model": 8},
    "NoamHoldAnnealing": {"warmup_steps": 4},
    "OneCycleLR": {"max_lr": 0.5},
    "PiecewiseConstant": {"boundaries": [10], "decay_rates": [0.1]},
    "ReduceLROnPlateau": None,
    "SequentialLR": {"schedulers": [{"name": "LinearLR"}, {"name": "ConstantLR"}], "milestones": [3]},
    "StepLR": {"step_size": 3},
    "T5InverseSquareRootAnnealing": {"constant_steps": 5},
    "TransformerPolicy": {"d_model": 8, "warmup_steps": 4},
    "WarmupHoldAnnealExponential": {"gamma": 0.5, "num_decays": 4},
}


def block(name, args=None):
    return json.dumps({"name": "sgd", "lr": 0.1, "momentum": 0.9, "sched": {"name": name, **(args or {})}})


@pytest.mark.parametrize("name", available_schedulers())
def test_every_scheduler_with_what_it_needs_is_drawn(name, plot):
    args = NEEDS.get(name, {})
    result = plot(block(name, args), *RUN)
    if args is None:
        assert refused(result).startswith("conf.yaml: optim.sched.")
    else:
        assert (result[0], result[2]) == (0, "")
        assert result[3].get_xlim() == (0, 8 if result[3].get_xlabel() == "epoch" else 40)


@pytest.mark.parametrize("name", sorted(NEEDS))
def test_without_what_it_needs_the_key_is_named(name, plot):
    first = next(iter(NEEDS[name] or {"": None}))
    assert refused(plot(block(name), *RUN)).startswith(f"conf.yaml: optim.sched.{first}")


@pytest.mark.parametrize("name", [name for name in available_schedulers() if NEEDS.get(name, {}) is not None])
def test_without_a_length_the_option_is_named(name, plot):
    assert refused(plot(block(name, NEEDS.get(name)))).startswith("conf.yaml: optim.sched")
    assert refused(plot(block(name, NEEDS.get(name)))).count(" is not given") == 1


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{name: sgd}", "optim.sched: missing; the learning rate is constant"),
        ("{sched: null}", "sched: null; the learning rate is constant"),
        ("{lr: 1}", "optim: missing; the file needs an optim block at its top, as optim or as model.optim or as"),
        ("[1, 2]", "optim: missing"),
        ("", "optim: missing"),
        ("optim: null", "optim: missing"),
        ("optim: ???", "optim: is '???', a mandatory value that nobody has set"),
        ("model: ???", "model.optim: is '???', a mandatory value that nobody has set"),
        ("optim: ${foo}", "optim: does not resolve: Interpolation key 'foo' not found; an interpolation must name a"),
        ("model: ${foo}", "model.optim: does not resolve: Interpolation key 'foo' not found; an interpolation must"),
        ("optim: ${optim}", "optim: does not resolve: "),
        (
            "defaults: [{optim: novograd}]",
            "optim: missing; Hydra takes it from another file of the defaults list. Draw",
        ),
        ("model: {optim: {name: sgd, sched: {name: cosin}}}", "model.optim.sched.name: unknown scheduler 'cosin'"),
        ("{name: sgd, sched: {name: ReduceLROnPlateau, monitor: x}}", "optim.sched.name: ReduceLROnPlateau follows a"),
        ("{name: sgd, sched: {name: cosine}}", "optim.sched.max_steps: CosineAnnealing needs the length of the run, w"),
        ("{name: sgd, name: adam}", "line 1, column 13: while constructing a mapping, found duplicate key name; give"),
    ],
)
def test_what_cannot_be_drawn(text, message, plot, tmp_path):
    assert refused(plot(text)).startswith(f"conf.yaml: {message}")
    assert not (tmp_path / "lr.png").exists()


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (STEP, "", "conf.yaml: optim.sched: StepLR (interval: epoch) has no end of its own; --max-epochs is not given"),
        (STEP, "--max-steps 40", "conf.yaml: --max-steps: StepLR has interval: epoch; give --steps-per-epoch too"),
        (
            ENDLESS,
            "",
            "conf.yaml: optim.sched: WarmupPolicy (interval: step) has no end of its own; --max-steps",
        ),
        (
            COSINE,
            "--max-epochs 4",
            "conf.yaml: --max-epochs: CosineAnnealing has interval: step; give --steps-per",
        ),
        (
            EPOCHS,
            "",
            "conf.yaml: optim.sched.max_epochs: the length of an epoch is unknown: --steps-per-epoch",
        ),
        (
            EPOCHS,
            "--max-steps 500",
            "conf.yaml: optim.sched.max_epochs: the length of an epoch is unknown: --steps",
        ),
        (COSINE, "--max-steps -4", "--max-steps: -4 is out of range; must be at least 1"),
        (COSINE, "--max-steps 0", "--max-steps: 0 is out of range; must be at least 1"),
        (COSINE, "--steps-per-epoch 0", "--steps-per-epoch: 0 is out of range; must be at least 1"),
        (
            "{name: sgd, sched: {name: OneCycleLR, max_lr: 1.0, total_steps: 20}}",
            "--max-steps 30",
            "conf.yaml: optim.sched.total_steps: OneCycleLR ends after 20 steps, and the run has 30: --max-steps 30",
        ),
        (
            "{name: sgd, sched: {name: SequentialLR, interval: step, milestones: [5], schedulers: [{name: ConstantLR}, "
            "{name: OneCycleLR, max_lr: 1.0, total_steps: 20}]}}",
            "--max-steps 30",
            "conf.yaml: optim.sched.schedulers[1].total_steps: OneCycleLR ends after 20 steps, and the run has 30",
        ),
        (COSINE, "--out nodir/lr.png", "nodir/lr.png: there is no folder 'nodir'; make it first"),
        (COSINE, "--out lr", "lr: has no suffix, which chooses the format. Allowed: "),
        (COSINE, "--out lr.pngg", "lr.pngg: unknown format 'pngg'; did you mean 'png'? Allowed: "),
        (COSINE, "--out folder.png", "folder.png: cannot be written: Is a directory"),
    ],
)
def test_options_that_do_not_work(text, options, message, plot, tmp_path):
    (tmp_path / "folder.png").mkdir()
    assert refused(plot(text, *options.split())).startswith(message)


def test_without_matplotlib(plot, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    assert refused(plot(COSINE)) == "pictures need matplotlib, which is missing: pip install matplotlib"


@pytest.mark.parametrize("config", sorted((ROOT / "conf" / "optim").glob("*/*.yaml")), ids=lambda path: path.stem)
def test_the_presets_with_a_schedule(config, plot):
    status, _, err, axes = plot(config.read_text(), "--max-steps", "5000")
    assert (status, err, axes.get_xlim()) == (0, "", (0, 5000))


def test_a_picture_that_cannot_be_written_is_not_there_in_half(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def savefig(self, path, **kwargs):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", savefig)
    config = tmp_path / "c.yaml"
    config.write_text("optim: {name: sgd, sched: {name: cosine, max_steps: 9}}")
    with pytest.raises(ConfigError, match="cannot be written: No space left on device"):
        command.draw(config, tmp_path / "lr.png", command.RunOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]
