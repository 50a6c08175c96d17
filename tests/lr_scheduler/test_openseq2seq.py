"""OpenSeq2Seq's policies against the float32 values that it gives (tests/golden/schedules_openseq2seq.json)."""

import json
from pathlib import Path

import pytest
import torch

from lightning_novograd import lr_scheduler
from lightning_novograd.lr_scheduler.base import Phase, ScheduleError

CASES = json.loads((Path(__file__).parents[1] / "golden" / "schedules_openseq2seq.json").read_text())["cases"]
CLASSES = {
    "fixed_lr": "WarmupPolicy",
    "piecewise_constant": "PiecewiseConstant",
    "exp_decay": "ExpDecay",
    "poly_decay": "PolyDecay",
    "cosine_decay": "CosineDecay",
    "transformer_policy": "TransformerPolicy",
    "inv_poly_decay": "InvPolyDecay",
}


def build(name, lr=0.1, **args):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    return optimizer, getattr(lr_scheduler, name)(optimizer, **args)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['policy']}-{json.dumps(case['args'])}")
def test_as_openseq2seq(case):
    args = dict(case["args"])
    lr = args.pop("learning_rate")
    if case["policy"] == "cosine_decay" and "min_lr" in args:
        args["min_lr_ratio"] = args.pop("min_lr")
    if case["error"] is not None:
        with pytest.raises(ScheduleError) as error:
            build(CLASSES[case["policy"]], lr, **args)
        assert error.value.path == "power"
        return
    optimizer, scheduler = build(CLASSES[case["policy"]], lr, **args)
    lrs = []
    for _ in case["lr"]:
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert lrs == pytest.approx(case["lr"], rel=3e-6, abs=1e-7 * lr)


def test_decay_fills_the_run_unless_told_otherwise():
    _, filled = build("PolyDecay", max_steps=50, begin_decay_at=10)
    _, told = build("PolyDecay", decay_steps=40, begin_decay_at=10)
    assert filled.state_dict() == told.state_dict()


@pytest.mark.parametrize(
    ("name", "args", "path"),
    [
        ("PolyDecay", {}, "decay_steps"),
        ("PolyDecay", {"max_steps": 50, "warmup_steps": 51}, "warmup_steps"),
        ("CosineDecay", {"max_steps": 50, "begin_decay_at": 50}, "begin_decay_at"),
        ("CosineDecay", {"max_steps": 50, "min_lr_ratio": 1.5}, "min_lr_ratio"),
        ("PolyDecay", {"max_steps": 50, "min_lr": 0.2}, "min_lr"),
        ("PiecewiseConstant", {"boundaries": [10, 10], "decay_rates": [0.1, 0.01]}, "boundaries"),
        ("PiecewiseConstant", {"boundaries": [10, 20], "decay_rates": [0.1]}, "decay_rates"),
        ("ExpDecay", {"decay_steps": 0, "decay_rate": 0.5, "use_staircase_decay": True}, "decay_steps"),
        ("ExpDecay", {"decay_steps": 5, "decay_rate": 0.5, "use_staircase_decay": "no"}, "use_staircase_decay"),
        ("TransformerPolicy", {"d_model": 64, "warmup_steps": 0}, "warmup_steps"),
        ("InvPolyDecay", {"max_steps": 50, "min_lr": 0.2}, "min_lr"),
    ],
)
def test_impossible_schedules_name_their_argument(name, args, path):
    with pytest.raises(ScheduleError) as error:
        build(name, **args)
    assert error.value.path == path


@pytest.mark.parametrize(
    ("name", "args", "phases"),
    [
        (
            "PolyDecay",
            {"max_steps": 50, "warmup_steps": 10, "begin_decay_at": 20},
            [("warmup", 0, 10), ("hold", 11, 20), ("anneal", 21, 50)],
        ),
        ("CosineDecay", {"max_steps": 50, "warmup_steps": 10}, [("warmup", 0, 10), ("anneal", 11, 50)]),
        ("TransformerPolicy", {"d_model": 64, "warmup_steps": 10}, [("warmup", 0, 9), ("anneal", 10, None)]),
        ("PiecewiseConstant", {"boundaries": [10], "decay_rates": [0.1]}, [("x 1", 0, 10), ("x 0.1", 11, None)]),
        (
            "ExpDecay",
            {"decay_steps": 5, "decay_rate": 0.5, "use_staircase_decay": False, "begin_decay_at": 3},
            [("hold", 0, 3), ("anneal", 4, None)],
        ),
        ("InvPolyDecay", {"max_steps": 50, "min_lr": 0.001}, [("anneal", 0, 50)]),
    ],
)
def test_phases(name, args, phases):
    assert build(name, **args)[1].phases() == [Phase(*phase) for phase in phases]


def test_inv_poly_decay_underflows_in_a_long_run():
    _, schedule = build("InvPolyDecay", decay_steps=1, min_lr=1e-8, power=100.0)
    assert 0 < schedule.lr_at(100, 0.1) < 1e-100
    assert schedule.lr_at(10**6, 0.1) == 0.0
