"""Schedules made of several: their unit, the length of each member, a warmup before any, and what is refused."""

import logging
import re
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT
from torch import nn

from lightning_novograd.config import RunLength, SchedConfig, build_optimizers, build_scheduler, parse_optim
from lightning_novograd.config.schema import SchedulerSpec
from lightning_novograd.errors import ConfigError
from lightning_novograd.lr_scheduler import CosineAnnealing, WarmupPolicy

RUN = RunLength(20, "5 epochs x 4 batches", epochs=5, steps_per_epoch=4)


def block(sched: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"name": "sgd", "lr": 0.1, "momentum": 0.9, "sched": sched, **changes}


def sequence(*schedulers: dict[str, Any], **changes: Any) -> dict[str, Any]:
    milestones = [4 * (index + 1) for index in range(len(schedulers) - 1)]
    return {"name": "SequentialLR", "schedulers": list(schedulers), "milestones": milestones, **changes}


def lrs(built: dict[str, Any], steps: int) -> list[list[float]]:
    """The LR of each param group at each step."""
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
    seen = []
    for _ in range(steps):
        seen.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return [list(group) for group in zip(*seen, strict=True)]


def run(sched: dict[str, Any], steps: int = 20, **changes: Any) -> list[list[float]]:
    return lrs(build_optimizers(block(sched, **changes), nn.Linear(2, 2), max_steps=RUN), steps)


def first(scheduler: Any, steps: int) -> list[float]:
    """The first LRs of a scheduler that stands alone."""
    return lrs({"optimizer": scheduler.optimizer, "lr_scheduler": {"scheduler": scheduler}}, steps)[0]


def sgd() -> torch.optim.SGD:
    return torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1, momentum=0.9)


def refusal(sched: dict[str, Any], **changes: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        build_optimizers(block(sched, **changes), nn.Linear(2, 2), max_steps=RUN)
    return caught.value


WARMUP = {"name": "WarmupPolicy", "warmup_steps": 4}
COSINE = {"name": "CosineAnnealing"}
STEP = {"name": "StepLR", "step_size": 3}
LINEAR = {"name": "LinearLR", "total_iters": 4}
DECAY = {"name": "ExponentialLR", "gamma": 0.9}

# ---------------------------------------------------------------------------------------------- how often


@pytest.mark.parametrize(
    ("sched", "interval"),
    [
        (sequence(WARMUP, {"name": "cosine", "max_steps": 9}), "step"),
        (sequence(LINEAR, STEP), "epoch"),
        (sequence(LINEAR, STEP, interval="step"), "step"),
        (sequence(WARMUP, STEP, interval="step"), "step"),
        (sequence(WARMUP, STEP, interval="epoch"), "epoch"),
        ({"name": "ChainedScheduler", "schedulers": [LINEAR, DECAY]}, "epoch"),
        ({"name": "ChainedScheduler", "schedulers": [WARMUP]}, "step"),
    ],
)
def test_it_is_stepped_as_often_as_its_members(sched, interval):
    assert parse_optim(block(sched)).sched.interval == interval


def test_members_that_count_different_things_are_refused():
    error = refusal(sequence(WARMUP, STEP))
    assert error.path == "optim.sched.interval"
    assert "WarmupPolicy counts optimizer steps, StepLR counts epochs: say step or epoch" in error.problem


# ---------------------------------------------------------------------------------------------- how long


def test_the_last_member_is_as_long_as_what_is_left():
    built = build_optimizers(block(sequence(WARMUP, COSINE)), nn.Linear(2, 2), max_steps=RUN)
    warmup, cosine = built["lr_scheduler"]["scheduler"]._schedulers
    assert (warmup.arguments["max_steps"], cosine.arguments["max_steps"]) == (4, 16)
    assert lrs(built, 20)[0] == [warmup.lr_at(s, 0.1) for s in range(4)] + [cosine.lr_at(s, 0.1) for s in range(16)]


def test_torchs_lengths_are_filled_in_too_in_steps_or_epochs():
    for interval, length in (("step", 16), ("epoch", 1)):
        sched = sequence(LINEAR, {"name": "CosineAnnealingLR"}, interval=interval)
        built = build_optimizers(block(sched), nn.Linear(2, 2), max_steps=RUN)
        assert built["lr_scheduler"]["scheduler"]._schedulers[1].T_max == length


def test_members_in_the_middle_last_until_the_next_milestone():
    sched = sequence(WARMUP, COSINE, {"name": "WarmupAnnealing"}, milestones=[4, 15])
    built = build_optimizers(block(sched), nn.Linear(2, 2), max_steps=RUN)
    members = built["lr_scheduler"]["scheduler"]._schedulers
    assert [member.arguments["max_steps"] for member in members] == [4, 11, 5]


def test_members_in_code_need_no_paths():
    members = [SchedulerSpec(name="ConstantLR", args={"factor": factor, "total_iters": 9}) for factor in (0.5, 0.25)]
    sched = SchedConfig(name="SequentialLR", args={"schedulers": members, "milestones": [2]})
    optimizer = sgd()
    entry = build_scheduler(sched, optimizer, 10)
    assert lrs({"optimizer": optimizer, "lr_scheduler": entry}, 4)[0] == [0.05, 0.05, 0.025, 0.025]


def test_a_length_that_is_given_stays():
    sched = sequence(WARMUP, {**COSINE, "max_steps": 7})
    built = build_optimizers(block(sched), nn.Linear(2, 2), max_steps=RUN)
    assert built["lr_scheduler"]["scheduler"]._schedulers[1].arguments["max_steps"] == 7


def test_members_side_by_side_have_the_whole_length():
    sched = {"name": "ChainedScheduler", "schedulers": [{"name": "CosineAnnealingLR"}, DECAY], "interval": "step"}
    built = build_optimizers(block(sched), nn.Linear(2, 2), max_steps=RUN)
    assert built["lr_scheduler"]["scheduler"]._schedulers[0].T_max == 20


def test_the_length_of_a_sequence_may_stand_in_the_block():
    sched = sequence(WARMUP, COSINE, max_steps=50)
    built = build_optimizers(block(sched), nn.Linear(2, 2))
    assert built["lr_scheduler"]["scheduler"]._schedulers[1].arguments["max_steps"] == 46


def test_a_sequence_whose_end_is_unknown_is_refused():
    with pytest.raises(ConfigError, match="SequentialLR needs the length of the run, which is unknown") as caught:
        build_optimizers(block(sequence(WARMUP, COSINE)), nn.Linear(2, 2))
    assert caught.value.path == "optim.sched.max_steps"


def test_nothing_is_left_for_the_last_member():
    error = refusal(sequence(WARMUP, COSINE, milestones=[20]))
    assert (error.path, "nothing is left for CosineAnnealing" in error.problem) == ("optim.sched.milestones", True)
    assert "5 epochs x 4 batches" in error.problem


def test_milestones_that_do_not_fit_the_members():
    error = refusal(sequence(LINEAR, STEP, milestones=[2, 4]))
    assert (error.path, "[2, 4] for 2 schedulers" in error.problem) == ("optim.sched.milestones", True)


# ---------------------------------------------------------------------------------------------- warmup


@pytest.mark.parametrize(
    "warmup", [{"warmup_steps": 4}, {"warmup_ratio": 0.2}, {"warmup_ratio": 0.24}, {"warmup_epochs": 1}], ids=str
)
def test_a_warmup_before_any_scheduler(warmup):
    """The LR rises as in NeMo's policies, and then the scheduler begins, at the LR of each param group."""
    rules = [{"match": "bias", "lr": 0.02}]
    curves = run({**STEP, "interval": "step", **warmup}, param_groups=rules)
    alone = first(torch.optim.lr_scheduler.StepLR(sgd(), 3), 16)
    for curve, share in zip(curves, (1.0, 0.2), strict=True):
        want = [share * 0.1 * (s + 1) / 5 for s in range(4)] + [share * lr for lr in alone]
        assert curve == pytest.approx(want, rel=1e-12)


def test_a_warmup_in_epochs():
    sched = {"name": "CosineAnnealingLR", "warmup_epochs": 2}
    built = build_optimizers(block(sched), nn.Linear(2, 2), max_steps=RUN)
    assert built["lr_scheduler"]["interval"] == "epoch"
    alone = first(torch.optim.lr_scheduler.CosineAnnealingLR(sgd(), 3), 3)
    assert lrs(built, 5)[0] == pytest.approx([0.1 / 3, 0.2 / 3, *alone])


def test_a_warmup_before_a_sequence():
    before_sequence = run(sequence({**DECAY}, STEP, interval="step", warmup_steps=2), 12)[0]
    assert before_sequence == pytest.approx([0.1 / 3, 0.2 / 3, *run(sequence(DECAY, STEP, interval="step"), 10)[0]])


def test_a_warmup_before_a_policy_that_has_none():
    sched = {"name": "InvPolyDecay", "min_lr": 0.01, "warmup_steps": 4}
    built = build_optimizers(block(sched), nn.Linear(2, 2), max_steps=RUN)
    assert built["lr_scheduler"]["scheduler"]._schedulers[1].arguments["decay_steps"] == 16


def test_no_warmup_is_the_scheduler_itself():
    built = build_optimizers(block({**STEP, "interval": "step", "warmup_steps": 0}), nn.Linear(2, 2), max_steps=RUN)
    assert type(built["lr_scheduler"]["scheduler"]) is torch.optim.lr_scheduler.StepLR


def test_a_policys_own_warmup_is_its_own():
    built = build_optimizers(block({**COSINE, "warmup_steps": 4}), nn.Linear(2, 2), max_steps=RUN)
    assert type(built["lr_scheduler"]["scheduler"]) is CosineAnnealing


def test_the_log_says_the_warmup(caplog):
    with caplog.at_level(logging.INFO, "lightning_novograd"):
        build_optimizers(block({**STEP, "interval": "step", "warmup_steps": 4}), nn.Linear(2, 2), max_steps=RUN)
    assert "Schedule StepLR after 4 of warmup, stepped every step" in caplog.text


@pytest.mark.parametrize(
    ("sched", "key", "problem"),
    [
        ({**STEP, "warmup_steps": 4}, "warmup_steps", "StepLR is stepped once per epoch; give warmup_epochs, or"),
        ({**STEP, "warmup_ratio": 0.1, "warmup_epochs": 1}, "warmup_epochs", "warmup_ratio is given too"),
        ({**STEP, "warmup_ratio": 1.5}, "warmup_ratio", "must be in 0..1"),
        ({**STEP, "warmup_epochs": -1}, "warmup_epochs", "must be at least 0"),
        ({**STEP, "warmup_epochs": 5}, "warmup_epochs", "5 epochs of warmup do not fit a schedule of 5"),
        ({**STEP, "interval": "step", "warmup_steps": 20}, "warmup_steps", "20 optimizer steps of warmup do not fit"),
        ({"name": "ReduceLROnPlateau", "monitor": "x", "warmup_epochs": 1}, "warmup_epochs", "follows a metric"),
        ({**LINEAR, "warmup_epochs": 1}, "warmup_epochs", "ends at the lr 0.1, where LinearLR would begin at 0.0333"),
        ({"name": "OneCycleLR", "max_lr": 0.1, "warmup_steps": 2}, "warmup_steps", "would begin at 0.004"),
        (
            {"name": "T5InverseSquareRootAnnealing", "constant_steps": 4, "warmup_steps": 2},
            "warmup_steps",
            "would begin at 0.5",
        ),
        ({**COSINE, "warmup_epochs": 1}, "warmup_epochs", "unknown key"),
        (
            {"name": "ChainedScheduler", "schedulers": [STEP, DECAY], "interval": "step", "warmup_steps": 4},
            "warmup_steps",
            "torch cannot step a ChainedScheduler after a warmup; put a LinearLR among its schedulers",
        ),
    ],
)
def test_a_warmup_that_cannot_be(sched, key, problem):
    error = refusal(sched)
    assert (error.path, problem in error.problem) == (f"optim.sched.{key}", True), error


def test_a_ratio_of_an_unknown_length():
    with pytest.raises(ConfigError, match="StepLR needs the length of the run"):
        build_optimizers(block({**STEP, "interval": "step", "warmup_ratio": 0.1}), nn.Linear(2, 2))
    assert build_optimizers(block({**STEP, "interval": "step", "warmup_steps": 1}), nn.Linear(2, 2))


# ---------------------------------------------------------------------------------------------- side by side, inside


@pytest.mark.parametrize("members", [[LINEAR, {**COSINE, "max_steps": 9}], [{**COSINE, "max_steps": 9}, DECAY]])
def test_a_closed_form_does_not_multiply_and_is_refused(members):
    error = refusal({"name": "ChainedScheduler", "schedulers": members, "interval": "step"})
    index = members.index({**COSINE, "max_steps": 9})
    assert error.path == f"optim.sched.schedulers[{index}].name"
    assert "CosineAnnealing sets the LR from the step alone" in error.problem


def test_torchs_that_do_not_multiply_are_named():
    cyclic = {"name": "CyclicLR", "base_lr": 0.01, "max_lr": 0.1}
    sched = {"name": "ChainedScheduler", "schedulers": [LINEAR, cyclic], "interval": "step"}
    with pytest.warns(UserWarning, match="CyclicLR sets the LR from the step alone and does not multiply"):
        build_optimizers(block(sched), nn.Linear(2, 2), max_steps=RUN)


@pytest.mark.parametrize("inner", [sequence(LINEAR, STEP), {"name": "ChainedScheduler", "schedulers": [LINEAR, DECAY]}])
@pytest.mark.parametrize("index", [0, 1])
def test_what_torch_cannot_step_at_a_milestone_is_refused(inner, index):
    members = [DECAY]
    members.insert(index, inner)
    error = refusal(sequence(*members))
    assert error.path == f"optim.sched.schedulers[{index}].name"
    assert "torch cannot step a" in error.problem


def test_one_cycle_leaves_the_lr_of_the_members_before_it():
    sched = sequence(DECAY, {"name": "OneCycleLR", "max_lr": 0.2}, interval="step")
    built = build_optimizers(block(sched), nn.Linear(2, 2), max_steps=RUN)
    cycle = first(torch.optim.lr_scheduler.OneCycleLR(sgd(), 0.2, 16), 16)
    assert lrs(built, 20)[0] == pytest.approx([0.1 * 0.9**s for s in range(4)] + cycle)


def test_one_cycle_leaves_the_lr_of_the_members_after_it():
    sched = sequence({"name": "OneCycleLR", "max_lr": 0.2}, DECAY, interval="step")
    cycle = first(torch.optim.lr_scheduler.OneCycleLR(sgd(), 0.2, 4), 4)
    assert run(sched, 8)[0] == pytest.approx(cycle + [0.1 * 0.9**s for s in range(4)])


def test_two_cycles_would_share_one_place():
    cycle = {"name": "OneCycleLR", "max_lr": 0.2}
    assert refusal(sequence(cycle, cycle)).path == "optim.sched.schedulers[1].name"


# ---------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("saved_at", [0, 2, 3, 4, 5, 11])
@pytest.mark.parametrize(
    "sched",
    [
        {**STEP, "interval": "step", "warmup_steps": 4},
        {"name": "CosineAnnealingLR", "interval": "step", "warmup_ratio": 0.2},
        sequence(WARMUP, COSINE),
    ],
    ids=["StepLR", "CosineAnnealingLR", "sequence"],
)
def test_a_resumed_run_has_the_lrs_of_an_uninterrupted_one(sched, saved_at):
    cfg = block(sched, param_groups=[{"match": "bias", "lr": 0.02}])
    whole, before, after = (build_optimizers(cfg, nn.Linear(2, 2), max_steps=RUN) for _ in range(3))
    lrs(before, saved_at)
    after["optimizer"].load_state_dict(before["optimizer"].state_dict())
    after["lr_scheduler"]["scheduler"].load_state_dict(before["lr_scheduler"]["scheduler"].state_dict())
    rest = lrs(after, 20 - saved_at)
    assert rest == [curve[saved_at:] for curve in lrs(whole, 20)]
    assert isinstance(after["lr_scheduler"]["scheduler"]._schedulers[0], WarmupPolicy)


# ---------------------------------------------------------------------------------------------- docs/schedules.md

COMPOSING = (ROOT / "docs" / "schedules.md").read_text().split("## Composing")[1].split("\n## ")[0]
BLOCKS = [text for part in re.findall(r"```yaml\n(.*?)```", COMPOSING, re.DOTALL) for text in part.split("sched:")[1:]]


@pytest.mark.parametrize("text", BLOCKS)
def test_the_blocks_of_the_page_are_built(text):
    run = RunLength(10_000, "100 epochs x 100 batches", epochs=100, steps_per_epoch=100)
    built = build_optimizers(block(yaml.safe_load(text)), nn.Linear(2, 2), max_steps=run)["lr_scheduler"]
    if "MultiStepLR" in text:
        curve = lrs({"optimizer": built["scheduler"].optimizer, "lr_scheduler": built}, 100)[0]
        assert [step for step in range(6, 100) if curve[step] != curve[step - 1]] == [30, 60]


def test_the_page_has_blocks():
    assert len(BLOCKS) == 4
