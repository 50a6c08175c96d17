"""Schedules that have LRs and momenta of their own leave param groups and the block what these say."""

from typing import Any

import pytest
import torch
from torch import nn

from lightning_novograd.config import build_optimizers, parse_optim
from lightning_novograd.errors import ConfigError

RULES = [{"match": "bias", "lr": 0.02}]
CYCLE = {"name": "OneCycleLR", "max_lr": 0.5}
CYCLIC = {"name": "CyclicLR", "base_lr": 0.1, "max_lr": 0.5, "step_size_up": 3}
T5 = {"name": "T5InverseSquareRootAnnealing", "constant_steps": 4}


def block(sched: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"name": "sgd", "lr": 0.1, "sched": sched, **changes}


def curves(cfg: dict[str, Any], key: str = "lr", steps: int = 12) -> list[list[Any]]:
    built = build_optimizers(cfg, nn.Linear(2, 2), max_steps=steps)
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
    seen = []
    for _ in range(steps):
        seen.append([group[key] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return [list(group) for group in zip(*seen, strict=True)]


@pytest.mark.parametrize("larc", [False, True])
@pytest.mark.parametrize(
    "sched",
    [
        CYCLE,
        CYCLIC,
        {"name": "SequentialLR", "milestones": [4], "schedulers": [CYCLE, CYCLIC]},
        {"name": "ChainedScheduler", "schedulers": [CYCLIC]},
    ],
    ids=lambda sched: sched["name"],
)
def test_a_number_stands_for_each_group_in_proportion_to_its_lr(sched, larc):
    alone = curves(block(sched, momentum=0.9))[0]
    weight, bias = curves(block(sched, momentum=0.9, param_groups=RULES, larc=larc))
    assert weight == alone
    assert bias == pytest.approx([lr / 5 for lr in alone], rel=1e-9)


def test_a_list_is_taken_as_it_is():
    weight, bias = curves(block({**CYCLE, "max_lr": [0.5, 0.3]}, momentum=0.9, param_groups=RULES))
    assert (max(weight), max(bias)) == pytest.approx((0.5, 0.3), rel=0.05)


def test_groups_that_do_not_differ_share_the_number():
    built = build_optimizers(block(CYCLE, momentum=0.9, no_decay=["bias"]), nn.Linear(2, 2), max_steps=9)
    assert [group["max_lr"] for group in built["optimizer"].param_groups] == [0.5, 0.5]


@pytest.mark.parametrize("sched", [CYCLE, {"name": "SequentialLR", "milestones": [4], "schedulers": [CYCLIC, CYCLE]}])
def test_without_an_lr_of_the_block_there_is_no_proportion(sched):
    cfg = block(sched, param_groups=RULES, momentum=0.9)
    del cfg["lr"]
    with pytest.raises(ConfigError, match="in proportion to the lr of each param group, but the block itself has none"):
        parse_optim(cfg)


def test_an_lr_of_0_has_no_proportion():
    with pytest.raises(ConfigError, match="but the block's lr is 0; give a list") as caught:
        build_optimizers(block(CYCLE, lr=0, momentum=0.9, param_groups=RULES), nn.Linear(2, 2), max_steps=9)
    assert caught.value.path == "optim.sched.max_lr"


def test_lrs_that_are_tensors():
    cfg = {"name": "adam", "lr": 0.1, "capturable": True, "param_groups": RULES, "sched": CYCLE}
    module = nn.Linear(2, 2)
    groups = build_optimizers(cfg, module, max_steps=9)["optimizer"].param_groups
    assert [group["max_lr"] for group in groups] == pytest.approx([0.5, 0.1])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"lr": 0}, "param group 0 would train although its lr is 0"),
        ({"param_groups": [{"match": "bias", "lr": 0}]}, "param group 1 would train although its lr is 0"),
        ({"param_groups": RULES}, "one absolute LR for all param groups, whose lr are 0.1, 0.02"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_t5_overrules_no_lr_of_a_group(changes, problem, inside):
    sched = {"name": "SequentialLR", "milestones": [3], "schedulers": [{"name": "cosine"}, T5]} if inside else T5
    with pytest.raises(ConfigError, match=problem) as caught:
        parse_optim(block(sched, **changes))
    assert caught.value.path == f"optim.sched{'.schedulers[1]' * inside}.name"


def test_t5_without_rules():
    assert curves(block(T5), steps=5) == [[0.5] * 5]
    assert curves(block(T5, no_decay=["bias"]), steps=5) == [[0.5] * 5] * 2


NOVOGRAD = {"name": "novograd", "betas": [0.9, 0.25]}


@pytest.mark.parametrize("sched", [CYCLE, CYCLIC], ids=lambda sched: sched["name"])
class TestMomentum:
    def test_what_the_block_says_stays(self, sched):
        assert curves(block(sched, **NOVOGRAD), "betas") == [[(0.9, 0.25)] * 12]
        assert curves(block(sched, momentum=0.8), "momentum") == [[0.8] * 12]

    def test_what_a_rule_says_stays(self, sched):
        rules = [{"match": "bias", "momentum": 0.7}]
        assert curves(block(sched, param_groups=rules), "momentum") == [[0] * 12, [0.7] * 12]

    @pytest.mark.parametrize("asked", [{"cycle_momentum": True}, {"base_momentum": 0.85}, {"max_momentum": 0.95}])
    def test_it_moves_where_that_is_asked_for(self, sched, asked):
        (betas,) = curves(block({**sched, **asked}, **NOVOGRAD), "betas")
        assert len({beta1 for beta1, _ in betas}) > 3

    def test_it_moves_by_default_where_the_block_says_nothing(self, sched):
        (betas,) = curves(block(sched, name="novograd"), "betas")
        assert len({beta1 for beta1, _ in betas}) > 3

    def test_inside_of_a_sequence(self, sched):
        outer = {"name": "SequentialLR", "milestones": [6], "schedulers": [{"name": "cosine"}, sched]}
        assert curves(block(outer, **NOVOGRAD), "betas") == [[(0.9, 0.25)] * 12]

    def test_an_optimizer_without_momentum(self, sched):
        with pytest.raises(ConfigError, match="must support momentum or beta1"):
            parse_optim(block(sched, name="adagrad"))


def test_torch_agrees_on_the_cycle():
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, 12, cycle_momentum=False)
    want = []
    for _ in range(12):
        want.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert curves(block(CYCLE, momentum=0.9)) == [want]


def peaks(**changes: Any) -> list[float]:
    """The largest LR of each group, from the lowest."""
    return sorted(max(curve) for curve in curves({"name": "sgd", "lr": 0.1, **changes}, steps=40))


ADAMW = {"match": "weight", "optimizer": {"name": "adamw", "lr": 0.001}}


@pytest.mark.parametrize("cycle", [{**CYCLE, "cycle_momentum": False}, {**CYCLIC, "cycle_momentum": False}], ids=str)
@pytest.mark.parametrize("rest", [[], [{"match": "bias", "lr": 0.1}]], ids=["the block's", "a rule's"])
def test_optimizers_of_rules_are_in_proportion_to_the_block_whatever_is_left_for_its_own(cycle, rest):
    assert peaks(sched=cycle, param_groups=[ADAMW, *rest]) == pytest.approx([0.005, 0.5], rel=2e-2)


def test_one_rule_for_all_is_in_proportion_to_the_block():
    assert peaks(sched={**CYCLE, "cycle_momentum": False}, param_groups=[{**ADAMW, "match": "*"}]) == pytest.approx(
        [0.005], rel=2e-2
    )


@pytest.mark.parametrize(
    "rule",
    [{"lr": 0.01}, {"lr_mult": 0.1}, {"optimizer": {"name": "sgd", "lr": 0.01}}],
    ids=str,
)
def test_a_schedule_of_a_rules_own_has_the_lrs_that_it_says(rule):
    own = {"match": "weight", "sched": {**CYCLE, "max_lr": 0.2, "cycle_momentum": False}, **rule}
    assert peaks(sched={"name": "cosine"}, param_groups=[own])[1] == pytest.approx(0.2, rel=2e-2)
