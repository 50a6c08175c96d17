"""torch's schedulers by name: whatever they would trip over in mid-run is refused when the block is parsed."""

import math
import re
from typing import Any

import pytest
from torch import nn
from torch.optim import lr_scheduler as torch_schedulers

from lightning_novograd.config import build_optimizers, parse_optim
from lightning_novograd.config.arguments import entry_arguments, expected
from lightning_novograd.errors import ConfigError
from lightning_novograd.lr_scheduler.pytorch import _RANGES
from lightning_novograd.registry import get_scheduler

STEPS = 12
# a block of each scheduler whose arguments come from data, without what has a default
BLOCKS: dict[str, dict[str, Any]] = {
    "StepLR": {"step_size": 2},
    "MultiStepLR": {"milestones": [2, 4]},
    "ConstantLR": {},
    "LinearLR": {},
    "ExponentialLR": {"gamma": 0.9},
    "PolynomialLR": {},
    "CosineAnnealingLR": {},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "CyclicLR": {"base_lr": 0.1, "max_lr": 0.2},
    "OneCycleLR": {"max_lr": 0.2},
    "ReduceLROnPlateau": {"monitor": "loss"},
    "SequentialLR": {
        "milestones": [2],
        "schedulers": [{"name": "LinearLR"}, {"name": "StepLR", "step_size": 3}],
    },
    "ChainedScheduler": {"schedulers": [{"name": "LinearLR"}, {"name": "ExponentialLR", "gamma": 0.9}]},
}


def block(name: str, **args: Any) -> dict[str, Any]:
    sched = {"name": name, "interval": "step", **BLOCKS[name], **args}
    return {"name": "sgd", "lr": 0.1, "momentum": 0.9, "sched": sched}


def is_number(hint: Any) -> bool:
    return bool(re.search("integer|number", expected(hint)))


def numbers(name: str) -> list[str]:
    arguments = entry_arguments(get_scheduler(name))
    return [key for key, a in arguments.items() if is_number(a.hint) and key != "last_epoch"]


def test_every_scheduler_is_in_the_table():
    of_functions = {"LambdaLR", "MultiplicativeLR"}
    assert {*BLOCKS} == {*torch_schedulers.__all__} - {"LRScheduler"} - of_functions


@pytest.mark.parametrize("name", BLOCKS)
def test_every_number_has_a_range(name):
    bounded = _RANGES.get(getattr(torch_schedulers, name), {})
    assert {*numbers(name)} == bounded.keys()


@pytest.mark.parametrize("value", [1e39, 1e300, -1e300], ids=str)
@pytest.mark.parametrize(("name", "key"), [(name, key) for name in BLOCKS for key in numbers(name)])
def test_what_float32_does_not_hold_is_refused(name, key, value):
    value = [value] if isinstance(BLOCKS[name].get(key), list) else value
    with pytest.raises(ConfigError) as caught:
        parse_optim(block(name, **{key: value}))
    assert caught.value.path == f"optim.sched.{key}"


@pytest.mark.parametrize("value", [-1, -0.5, 0, 0.5, 1, 2, 10**18, [0], [5, 5], [5, 2], [-1]], ids=str)
@pytest.mark.parametrize(("name", "key"), [(name, key) for name in BLOCKS for key in numbers(name)])
def test_a_number_is_refused_or_works_to_the_end_of_the_run(name, key, value):
    if key == "gamma" and value == 10**18:
        return  # a growing LR overflows, sooner or later
    if key == "total_steps" and value in (1, 2):
        return  # shorter than the run
    try:
        built = build_optimizers(block(name, **{key: value}), nn.Linear(2, 2), max_steps=STEPS)
    except ConfigError:
        return
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
    for _ in range(STEPS):
        optimizer.step()
        scheduler.step(1.0) if name == "ReduceLROnPlateau" else scheduler.step()
        (lr,) = scheduler.get_last_lr()
        assert isinstance(lr, float)
        assert math.isfinite(lr)
        assert lr > -1e-12  # LinearLR rounds


@pytest.mark.parametrize(
    ("name", "args", "key", "problem"),
    [
        ("StepLR", {"step_size": 0}, "step_size", "0 is out of range; must be at least 1"),
        ("StepLR", {"gamma": -1}, "gamma", "must be at least 0"),
        ("MultiStepLR", {"milestones": [3, -1]}, "milestones", "[3, -1] is out of range"),
        ("ExponentialLR", {"gamma": -0.5}, "gamma", "must be at least 0"),
        ("ConstantLR", {"factor": 0}, "factor", "must be above 0 and at most 1"),
        ("ConstantLR", {"factor": 2}, "factor", "must be above 0 and at most 1"),
        ("LinearLR", {"end_factor": 1.5}, "end_factor", "must be in 0..1"),
        ("PolynomialLR", {"power": -1}, "power", "must be at least 0"),
        ("CosineAnnealingLR", {"T_max": 0}, "T_max", "must be at least 1"),
        ("CosineAnnealingLR", {"eta_min": -1e-3}, "eta_min", "must be at least 0"),
        ("CosineAnnealingWarmRestarts", {"T_mult": 1e300}, "T_mult", "expected an integer"),
        ("CyclicLR", {"base_lr": [0.1, -0.1]}, "base_lr", "must be at least 0"),
        ("CyclicLR", {"step_size_up": 0}, "step_size_up", "must be at least 1"),
        ("OneCycleLR", {"max_lr": -1}, "max_lr", "must be at least 0"),
        ("OneCycleLR", {"pct_start": 1}, "pct_start", "at least 0 and below 1"),
        ("OneCycleLR", {"pct_start": 0.6, "three_phase": True}, "pct_start", "at most 0.5 with three_phase"),
        ("OneCycleLR", {"div_factor": -1}, "div_factor", "must be above 0"),
        ("OneCycleLR", {"div_factor": 1e-50}, "div_factor", "1e-50 is 0.0 in float32; must be above 0"),
        (
            "OneCycleLR",
            {"div_factor": 1e-45},
            "",
            "begins with a learning rate of 2e+44 in param group 0, which is",
        ),
        ("OneCycleLR", {"epochs": 3}, "epochs", "no effect without steps_per_epoch"),
        ("OneCycleLR", {"steps_per_epoch": 3}, "steps_per_epoch", "no effect without epochs"),
        ("OneCycleLR", {"epochs": 3, "steps_per_epoch": 4, "total_steps": 5}, "epochs", "give one"),
        ("ReduceLROnPlateau", {"factor": -0.1}, "factor", "at least 0 and below 1"),
        ("ReduceLROnPlateau", {"min_lr": [0.1, 0.2]}, "min_lr", "expected 1 min_lrs, got 2"),
        ("SequentialLR", {"milestones": [0]}, "milestones", "must be at least 1"),
        (
            "SequentialLR",
            {"milestones": [5, 2], "schedulers": [{"name": "LinearLR"}] * 3},
            "milestones",
            "[5, 2] do not rise",
        ),
        (
            "ChainedScheduler",
            {"schedulers": [{"name": "LinearLR"}, {"name": "StepLR", "step_size": 0}]},
            "schedulers[1].step_size",
            "must be at least 1",
        ),
    ],
)
def test_the_error_names_the_argument(name, args, key, problem):
    with pytest.raises(ConfigError) as caught:
        parse_optim(block(name, **args))
    assert caught.value.path == f"optim.sched.{key}".removesuffix(".")
    assert problem in caught.value.problem


PER_GROUP = {
    "OneCycleLR": {"max_lr": [0.1, 0.2]},
    "CyclicLR": {"base_lr": [0.1, 0.2]},
    "ReduceLROnPlateau": {"min_lr": [0.01, 0.02]},
    "SequentialLR": {"schedulers": [{"name": "LinearLR"}, {"name": "CyclicLR", "base_lr": [0.1, 0.2], "max_lr": 0.3}]},
}
TWO_GROUPS = {
    "split by no_decay": {"no_decay": ["bias"]},
    "default and a rule": {"param_groups": [{"match": "bias", "lr": 0.1}]},
    "rules that leave nothing": {"param_groups": [{"match": "bias", "lr": 0.1}, {"match": "weight", "lr": 0.2}]},
    "a rule, split": {"no_decay": ["bias"], "param_groups": [{"match": "*", "lr": 0.1}]},
}


@pytest.mark.parametrize("groups", TWO_GROUPS.values(), ids=TWO_GROUPS)
@pytest.mark.parametrize("name", PER_GROUP)
@pytest.mark.parametrize("larc", [False, True])
def test_a_list_has_a_value_for_each_group(name, groups, larc):
    built = build_optimizers(
        {**block(name, **PER_GROUP[name]), **groups, "larc": larc}, nn.Linear(2, 2), max_steps=STEPS
    )
    assert len(built["optimizer"].param_groups) == 2


@pytest.mark.parametrize("groups", [{}, {"no_decay": ["bias"]}], ids=["one group", "two groups"])
def test_a_list_for_more_groups_than_there_can_be(groups):
    with pytest.raises(ConfigError, match="max_lr has 3 values") as caught:
        parse_optim({**block("OneCycleLR", max_lr=[0.1, 0.2, 0.3]), **groups})
    assert caught.value.path == "optim.sched.max_lr"


def test_a_list_for_other_groups_than_the_model_has():
    cfg = parse_optim({**block("OneCycleLR", max_lr=[0.1, 0.2]), "no_decay": ["bias"]})
    with pytest.raises(ConfigError, match="max_lr has 2 values, param_groups has 1") as caught:
        build_optimizers(cfg, nn.Linear(2, 2, bias=False), max_steps=STEPS)
    assert caught.value.path == "optim.sched.max_lr"
