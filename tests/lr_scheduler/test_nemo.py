"""Every policy against the values that NeMo 3.0.0 gives (tests/golden/schedules.json)."""

import json
from pathlib import Path

import pytest
import torch

from lightning_novograd import lr_scheduler
from lightning_novograd.lr_scheduler.base import ScheduleError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "schedules.json").read_text())
CASES = [(name, case) for name, cases in GOLDEN["policies"].items() for case in cases]
IDS = [f"{name}-{json.dumps(case['args'])}" for name, case in CASES]

# NeMo gives an LR list, ours refuses: (policy, arguments) -> argument at fault. Each is an impossible schedule.
REFUSED = {
    # warmup longer than the run: NeMo goes on warming up after max_steps
    ("WarmupPolicy", '{"warmup_steps": 60, "max_steps": 50}'): "warmup_steps",
    ("SquareAnnealing", '{"warmup_steps": 60, "max_steps": 50}'): "warmup_steps",
    ("CosineAnnealing", '{"warmup_steps": 60, "max_steps": 50}'): "warmup_steps",
    ("WarmupAnnealing", '{"warmup_steps": 60, "max_steps": 50}'): "warmup_steps",
    ("PolynomialDecayAnnealing", '{"warmup_steps": 60, "max_steps": 50}'): "warmup_steps",
    # warmup + hold longer than the run: NeMo holds the base LR after max_steps and never anneals
    ("WarmupHoldPolicy", '{"warmup_steps": 10, "hold_steps": 45, "max_steps": 50}'): "hold_steps",
    ("WarmupHoldAnnealOneMinusSquareRoot", '{"warmup_steps": 10, "hold_steps": 45, "max_steps": 50}'): "hold_steps",
    ("WarmupHoldAnnealLinear", '{"warmup_steps": 10, "hold_steps": 45, "max_steps": 50}'): "hold_steps",
    ("PolynomialHoldDecayAnnealing", '{"warmup_steps": 10, "hold_steps": 45, "max_steps": 50}'): "hold_steps",
    # constant_steps longer than the run: NeMo's LR is 0 throughout
    ("CosineAnnealing", '{"constant_steps": 60, "max_steps": 50}'): "constant_steps",
    # min_lr above the base LR: NeMo's LR increases
    ("WarmupHoldAnnealLinear", '{"min_lr": 0.5, "max_steps": 50}'): "min_lr",
    ("WarmupAnnealing", '{"warmup_steps": 10, "min_lr": 0.5, "max_steps": 50}'): "min_lr",
    ("PolynomialDecayAnnealing", '{"warmup_steps": 10, "min_lr": 0.5, "max_steps": 50}'): "min_lr",
}

# With base LRs 0.1 and 0.02, min_lr lies above the second group's. NeMo raises in CosineAnnealing only, at step 11.
REFUSED_WITH_TWO_GROUPS = {
    ("SquareAnnealing", '{"min_lr": 0.05, "max_steps": 50}'),
    ("CosineAnnealing", '{"warmup_steps": 10, "min_lr": 0.05, "max_steps": 50}'),
    ("NoamHoldAnnealing", '{"warmup_steps": 5, "hold_steps": 10, "decay_rate": 0.25, "min_lr": 0.05, "max_steps": 50}'),
    ("InverseSquareRootAnnealing", '{"warmup_ratio": 0.2, "min_lr": 0.06, "max_steps": 50}'),
    ("SquareRootAnnealing", '{"warmup_ratio": 0.2, "min_lr": 0.03, "max_steps": 50}'),
}

# NeMo gives the second group the first group's LR; ours is what NeMo gives a single group with that base LR.
NEMO_USES_FIRST_GROUP = {
    ("CosineAnnealing", '{"constant_steps": 10, "max_steps": 50}'),
    ("CosineAnnealing", '{"warmup_steps": 10, "constant_steps": 10, "min_lr": 0.001, "max_steps": 50}'),
    ("CosineAnnealing", '{"warmup_ratio": 0.1, "constant_ratio": 0.2, "min_lr": 0.01, "max_steps": 50}'),
    ("CosineAnnealing", '{"warmup_steps": 25, "constant_steps": 25, "max_steps": 50}'),
    ("WarmupAnnealing", '{"max_steps": 50}'),
    ("WarmupAnnealing", '{"warmup_steps": 10, "max_steps": 50}'),
    ("WarmupAnnealing", '{"warmup_ratio": 0.2, "min_lr": 0.001, "max_steps": 50}'),
}


def key(name, case):
    return name, json.dumps(case["args"])


def trajectory(name, args, base_lrs, steps=61):
    """`lrs[group][k]`: what optimizer step k sees."""
    args = dict(args)
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in base_lrs]
    if "last_epoch" in args:
        groups = [{**group, "initial_lr": group["lr"]} for group in groups]
    optimizer = torch.optim.SGD(groups, lr=0.0)
    scheduler = getattr(lr_scheduler, name)(optimizer, **args)
    lrs = [[] for _ in base_lrs]
    for _ in range(steps):
        for seen, group in zip(lrs, optimizer.param_groups, strict=True):
            seen.append(group["lr"])
        optimizer.step()
        scheduler.step()
    return lrs


def test_every_policy_of_the_reference_is_there():
    assert set(GOLDEN["policies"]) <= set(lr_scheduler.__all__)
    assert len(GOLDEN["policies"]) == 14


@pytest.mark.parametrize(("name", "case"), CASES, ids=IDS)
def test_single_group_as_nemo(name, case):
    if case["error"] is not None:
        with pytest.raises((ScheduleError, TypeError)):
            trajectory(name, case["args"], [0.1], steps=0)
    elif key(name, case) in REFUSED:
        with pytest.raises(ScheduleError) as error:
            trajectory(name, case["args"], [0.1], steps=0)
        assert error.value.path == REFUSED[key(name, case)]
    else:
        assert trajectory(name, case["args"], [0.1])[0] == pytest.approx(case["lr"], rel=1e-12, abs=1e-12)


TWO_GROUPS = [(n, c) for n, c in CASES if c["error"] is None and key(n, c) not in REFUSED]


@pytest.mark.parametrize(("name", "case"), TWO_GROUPS, ids=[f"{n}-{json.dumps(c['args'])}" for n, c in TWO_GROUPS])
def test_two_groups_keep_their_own_lr(name, case):
    if key(name, case) in REFUSED_WITH_TWO_GROUPS:
        with pytest.raises(ScheduleError, match="param group 1") as error:
            trajectory(name, case["args"], GOLDEN["base_lrs_two_groups"], steps=0)
        assert error.value.path == "min_lr"
        return
    first, second = trajectory(name, case["args"], GOLDEN["base_lrs_two_groups"])
    assert first == pytest.approx(case["lr"], rel=1e-12, abs=1e-12)
    nemo = case["two_groups"]["lr_group1"]
    if key(name, case) in NEMO_USES_FIRST_GROUP:
        assert max(nemo) > 0.02, "NeMo is right here: take the case off the list"
        assert second == trajectory(name, case["args"], [0.02])[0]
        assert max(second) <= 0.02
    else:
        assert second == pytest.approx(nemo, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("decay_rate", [300.0, 1e18])
def test_a_steep_noam_hold_falls_to_min_lr(decay_rate):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    args = {"max_steps": 100, "warmup_steps": 30, "hold_steps": 10, "decay_rate": decay_rate, "min_lr": 1e-12}
    schedule = lr_scheduler.NoamHoldAnnealing(optimizer, **args)
    assert [schedule.lr_at(step, 0.1) for step in (39, 40)] == [0.1, 0.1]
    assert schedule.lr_at(41, 0.1) < 1e-5
    assert schedule.lr_at(100, 0.1) == 1e-12
