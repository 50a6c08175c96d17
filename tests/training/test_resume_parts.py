"""Rules' schedules at resume: each goes on as a schedule on its own would, whatever is changed in the others."""

import pytest
from tiny_fit import Net
from training.test_resume import SAVED_AT, SCHEDULES, per_step, resumed, sgd

from lightning_novograd.errors import ConfigError

__all__ = ["resumed"]  # a fixture
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*", "ignore:.*(dirpath has changed|callbacks used to create).*"
)
# What the block has is the first, what a rule has before and after the others; "": no schedule of its own
NAMES = ["ours", "StepLR", "CosineAnnealingLR", "OneCycleLR", "ChainedScheduler", "warmup, then StepLR"]
SCHEDS = {name: SCHEDULES[name] for name in NAMES} | {"": None, "another of ours": {"name": "polynomial"}}


class Both(Net):
    """Notes the LRs of weight and bias."""

    def on_before_optimizer_step(self, optimizer):
        self.lrs.append([group["lr"] for group in optimizer.param_groups])


def with_rule(block, rule, **changes):
    return sgd(sched=SCHEDS[block], param_groups=[{"match": "*bias", "sched": SCHEDS[rule], **changes}])


def of_group(index, lrs):
    return [both[index] for both in lrs]


@pytest.mark.parametrize("block", ["ours", "StepLR", "warmup, then StepLR", ""])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "another of ours"),
        ("", "StepLR"),
        ("", "OneCycleLR"),
        ("", "warmup, then StepLR"),
        ("another of ours", "ours"),
        ("another of ours", "StepLR"),
        ("StepLR", "another of ours"),
        ("StepLR", "CosineAnnealingLR"),
        ("ChainedScheduler", "warmup, then StepLR"),
        ("OneCycleLR", "OneCycleLR"),
        ("ChainedScheduler", "ChainedScheduler"),
    ],
)
def test_each_goes_on_as_it_would_on_its_own(block, before, after, resumed):
    rest, said = resumed(with_rule(block, before), with_rule(block, after), net=Both)
    assert of_group(0, rest.lrs) == pytest.approx(of_group(0, rest.before)[SAVED_AT:])
    alone, said_alone = resumed(sgd(sched=SCHEDS[before or block]), sgd(sched=SCHEDS[after]))
    assert of_group(1, rest.lrs) == pytest.approx(alone.lrs)
    assert len(said) == len(said_alone)
    assert not any("default" in text or "PartsLR" in text for text in said)


@pytest.mark.parametrize("block", [name for name in SCHEDS if name])
def test_a_rule_that_loses_its_schedule_joins_the_blocks_which_goes_on(block, resumed):
    rest, (said, *_) = resumed(with_rule(block, "another of ours"), with_rule(block, ""), net=Both)
    assert of_group(0, rest.lrs) == pytest.approx(of_group(0, rest.before)[SAVED_AT:])
    assert "of *bias, which had another one" in said
    whole, _ = resumed(sgd(sched=SCHEDS[block]), sgd(sched=SCHEDS[block]))
    if block == "ours":
        assert of_group(1, rest.lrs) == pytest.approx(whole.lrs)


def test_without_any_schedule_it_is_constant_from_there_alone(resumed):
    rest, (said,) = resumed(with_rule("", "ours", lr=0.3), sgd(param_groups=[{"match": "*bias", "lr": 0.3}]), net=Both)
    now = rest.before[SAVED_AT]
    assert rest.lrs == [pytest.approx(now)] * 6
    assert f"goes on with a constant lr {now[1]:.6g} of *bias, where the schedule stopped" in said


def test_a_setting_that_is_kept_is_said_with_its_group(resumed):
    longer = {**with_rule("ours", ""), "param_groups": [{"match": "*bias", "sched": per_step("StepLR", step_size=7)}]}
    _, (said,) = resumed(with_rule("ours", "StepLR"), longer, net=Both)
    assert "goes on with StepLR's step_size 5 (config: 7) of *bias. " in said


def test_the_lr_of_a_group_without_a_schedule_is_compared(resumed):
    _, (said,) = resumed(with_rule("", "ours"), {**with_rule("", "ours", lr=0.1), "lr": 0.2}, net=Both)
    assert "param group 0: lr 0.1 (config: 0.2)" in said


def test_one_cycle_of_a_rule_that_cannot_be_lengthened_is_named(resumed):
    with pytest.raises(ConfigError) as caught:
        resumed(with_rule("ours", "OneCycleLR"), with_rule("ours", "OneCycleLR"), epochs=5, net=Both)
    assert caught.value.path == "optim.param_groups[0].sched.total_steps"


def test_the_same_groups_in_another_order_are_refused(resumed):
    class Twins(Both):
        def __init__(self, optim):
            super().__init__(optim)
            self.other = type(self.layer)(3, 2)

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + self.other(batch).square().mean()

    rules = [{"match": "layer.bias", "lr": 0.3}, {"match": "other.bias", "lr": 0.2}]
    with pytest.raises(ConfigError, match="rules, their order and no_decay stay as they are"):
        resumed(sgd(param_groups=rules), sgd(param_groups=rules[::-1]), net=Twins)
