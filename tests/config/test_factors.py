"""The LR of a group that is a factor times others' is so at every step, floors included."""

import pickle
from typing import Any

import pytest
import torch
from policies import ARGUMENTS, registered
from torch import nn

from lightning_novograd.config import build_optimizers
from lightning_novograd.errors import ConfigError
from lightning_novograd.lr_scheduler.curves import lr_curves

STEPS = 34
FACTORS = [1.0, 0.5, 0.25]  # the last layer, the first, the bias of the last
POLICIES = {
    **{name: ARGUMENTS[name] for name, cls in registered().items() if cls.uses_base_lr},
    **{
        f"{name} with a floor": {**ARGUMENTS[name], "min_lr": 0.004}
        for name in registered()
        if "min_lr" in registered()[name].__init__.__annotations__ and registered()[name].uses_base_lr
    },
    "warmup before torch's": {"name": "StepLR", "interval": "step", "step_size": 9, "warmup_steps": 4},
}


def block(sched: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "name": "sgd",
        "lr": 0.1,
        "layer_decay": 0.5,
        "param_groups": [{"match": "1.bias", "lr_mult": 0.25}],
        "sched": sched,
        **changes,
    }


def build(cfg: dict[str, Any]) -> tuple[Any, Any]:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
    built = build_optimizers(cfg, model, max_steps=STEPS)
    return built["optimizer"], built["lr_scheduler"]["scheduler"]


def stepped(optimizer: Any, scheduler: Any) -> list[list[float]]:
    seen = []
    for _ in range(STEPS):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return [list(group) for group in zip(*seen, strict=True)]


@pytest.mark.parametrize("name", POLICIES)
def test_a_groups_curve_is_its_factor_times_the_others(name):
    sched = {"name": name.partition(" ")[0], **POLICIES[name]}
    optimizer, scheduler = build(block(sched))
    assert [group.get("lr_factor", 1.0) for group in optimizer.param_groups] == FACTORS
    (alone,) = stepped(*build(block(sched, layer_decay=None, param_groups=[])))
    curves = stepped(optimizer, scheduler)
    assert curves[0] == alone
    for factor, curve in zip(FACTORS, curves, strict=True):
        assert curve == pytest.approx([factor * lr for lr in alone], rel=1e-9, abs=0)
    if name in ARGUMENTS:
        _, fresh = build(block(sched))
        assert lr_curves(fresh, STEPS) == curves


def test_many_layers_have_a_schedule_with_a_floor():
    """As in the recipes of BEiT and MAE, whose factors come after the floor."""
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(24)))
    sched = {"name": "cosine", "warmup_steps": 2, "min_lr": 1e-6}
    cfg = {"name": "adamw", "lr": 1e-3, "layer_decay": 0.65, "sched": sched}
    built = build_optimizers(cfg, model, max_steps=10)
    last = [curve[-1] for curve in lr_curves(built["lr_scheduler"]["scheduler"], 12)]
    assert last == pytest.approx([1e-6 * 0.65**index for index in range(24)], rel=1e-9)


def test_a_floor_may_be_the_lr_itself():
    _, scheduler = build(block({"name": "polynomial", "min_lr": 0.1}, layer_decay=0.7))
    for curve, factor in zip(lr_curves(scheduler, STEPS), [1.0, 0.7, 0.25], strict=True):
        assert curve == pytest.approx([0.1 * factor] * STEPS, rel=1e-12)


def test_a_factor_of_0_is_an_lr_of_0():
    rules = [{"match": "1.bias", "lr_mult": 0.0}]
    for name in ("cosine", "InvPolyDecay"):
        sched = {"name": name, "min_lr": 0.01}
        optimizer, scheduler = build(block(sched, param_groups=rules, layer_decay=None))
        assert stepped(optimizer, scheduler)[1] == [0.0] * STEPS


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        (
            [{"match": "1.bias", "lr": 0.001}],
            "0.004 is above the learning rate of param group 1, 0.001; must be at most that",
        ),
        (
            [{"match": "*", "lr_mult": 0.3, "optimizer": {"name": "sgd", "lr": 0.001}}],
            "of param group 1, 0.001; must be at most that (before its factor, 0.3",
        ),
    ],
    ids=["an lr of its own", "an optimizer of its own"],
)
def test_a_floor_above_the_lr_that_was_multiplied_is_refused(rules, problem):
    with pytest.raises(ConfigError) as caught:
        build(block({"name": "cosine", "min_lr": 0.004}, param_groups=rules))
    assert caught.value.path == "optim.sched.min_lr"
    assert problem in caught.value.problem


def test_torchs_floor_is_multiplied_where_there_is_one_for_each_group():
    sched = {"name": "ReduceLROnPlateau", "monitor": "loss", "min_lr": 0.01, "patience": 0, "factor": 0.1}
    optimizer, scheduler = build(block(sched))
    for _ in range(5):
        scheduler.step(1.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.005, 0.0025])


@pytest.mark.parametrize("name", ["CosineAnnealingLR", "CosineAnnealingWarmRestarts"])
def test_torchs_floor_for_all_groups_lifts_no_lr(name):
    sched = {"name": name, "eta_min": 0.04, **({"T_0": 5} if "Warm" in name else {"T_max": 5})}
    with pytest.raises(ConfigError, match=r"0\.04 is above the learning rate of param group 1, 0\.025") as caught:
        build(block(sched))
    assert caught.value.path == "optim.sched.eta_min"
    build(block({**sched, "eta_min": 0.02}))


@pytest.mark.filterwarnings("ignore:.*optimizer.step.* has been overridden")  # by torch, and pickling undoes it
def test_factors_are_kept_by_a_pickled_schedule_and_taken_from_added_groups():
    optimizer, scheduler = pickle.loads(pickle.dumps(build(block({"name": "cosine", "min_lr": 0.05}))))
    added = {"params": nn.Parameter(torch.ones(1)), "lr": 0.01, "initial_lr": 0.01, "lr_factor": 0.1}
    optimizer.add_param_group(added)
    curves = stepped(optimizer, scheduler)
    assert curves[3] == pytest.approx([0.1 * lr for lr in curves[0]])
