"""PartsLR: what hosts ask of an LRScheduler, of one that is made of several."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ChainedScheduler, ExponentialLR, LRScheduler, ReduceLROnPlateau, StepLR

from lightning_novograd.config import build_optimizers
from lightning_novograd.lr_scheduler import CosineAnnealing
from lightning_novograd.lr_scheduler.curves import lr_curves, own_length, sampled_curves
from lightning_novograd.lr_scheduler.parts import PartsLR, parts_scheduler, position
from lightning_novograd.optim.composite import Composite

SGD_BLOCK = {"name": "sgd", "lr": 0.1}


def parts_of(optimizer):
    return optimizer.optimizers


def two_parts(lr=0.1):
    return Composite([SGD([nn.Parameter(torch.ones(1))], lr=lr) for _ in range(2)])


def built(block, max_steps=100):
    return build_optimizers({**SGD_BLOCK, **block}, nn.Linear(2, 2), max_steps=max_steps)


def stepped(optimizer, scheduler, times):
    for _ in range(times):
        optimizer.step()
        scheduler.step()


def test_hosts_find_what_an_lr_scheduler_has():
    optimizer = two_parts()
    scheduler = parts_scheduler(optimizer, [StepLR(parts_of(optimizer)[1], step_size=1, gamma=0.5)])
    assert isinstance(scheduler, LRScheduler)
    assert not isinstance(scheduler, ReduceLROnPlateau)
    assert (scheduler.last_epoch, scheduler._step_count, scheduler.base_lrs) == (0, 1, [0.1, 0.1])
    stepped(optimizer, scheduler, 2)
    assert (scheduler.last_epoch, scheduler._step_count) == (2, 3)
    assert scheduler.get_lr() == scheduler.get_last_lr() == [0.1, 0.025]
    assert scheduler.parts == [[1]]


def test_lrs_that_are_tensors_are_not_handed_out():
    optimizer = two_parts(lr=torch.tensor(0.1))
    scheduler = parts_scheduler(optimizer, [StepLR(parts_of(optimizer)[0], step_size=1)])
    scheduler.get_lr()[0].zero_()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda scheduler: pickle.loads(pickle.dumps(scheduler))])
@pytest.mark.parametrize("name", ["StepLR", "ReduceLROnPlateau"])
def test_it_is_copied(copied, name):
    optimizer = two_parts()
    part = parts_of(optimizer)[1]
    member = StepLR(part, step_size=1, gamma=0.5) if name == "StepLR" else ReduceLROnPlateau(part, patience=0)
    scheduler = copied(parts_scheduler(optimizer, [member]))
    assert (scheduler.parts, scheduler.last_epoch) == ([[1]], 0)


CHAIN = {"name": "ChainedScheduler", "schedulers": [{"name": "ExponentialLR", "gamma": 0.9}]}


def test_a_chain_beside_the_schedule_of_a_rule():
    result = built(
        {"sched": CHAIN, "param_groups": [{"match": "bias", "sched": {"name": "ExponentialLR", "gamma": 0.5}}]}
    )
    optimizer, scheduler = result["optimizer"], result["lr_scheduler"]["scheduler"]
    stepped(optimizer, scheduler, 2)
    assert scheduler.get_last_lr() == pytest.approx([0.1 * 0.9**2, 0.1 * 0.5**2])
    assert scheduler.last_epoch == 2


def test_where_any_scheduler_is():
    optimizer = SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    chain = ChainedScheduler([ExponentialLR(optimizer, 0.9), ExponentialLR(optimizer, 0.9)])
    stepped(optimizer, chain, 3)
    assert position(chain) == 3
    assert position(object()) == 0


PLATEAU = {"name": "ReduceLROnPlateau", "monitor": "loss", "patience": 0, "factor": 0.5}


def test_a_plateau_of_a_rule_is_known_as_one():
    result = built({"param_groups": [{"match": "bias", "sched": PLATEAU}]})
    scheduler = result["lr_scheduler"]["scheduler"]
    assert isinstance(scheduler, ReduceLROnPlateau)
    assert isinstance(scheduler, PartsLR)
    assert result["lr_scheduler"]["reduce_on_plateau"]
    for loss in (1.0, 2.0, 3.0):
        scheduler.step(loss)
    assert scheduler.get_last_lr() == [0.1, 0.025]
    assert (scheduler.last_epoch, scheduler.best, scheduler.factor) == (3, 1.0, 0.5)
    again = built({"param_groups": [{"match": "bias", "sched": PLATEAU}]})["lr_scheduler"]["scheduler"]
    again.load_state_dict(scheduler.state_dict())
    assert (again.last_epoch, again.best) == (3, 1.0)
    with pytest.raises(AttributeError, match="bst"):
        scheduler.bst  # noqa: B018


def test_parts_under_larc():
    rule = {"match": "bias", "optimizer": {"name": "sgd", "lr": 0.2, "larc": True}, "sched": {"name": "cosine"}}
    result = built({"param_groups": [rule], "sched": {"name": "cosine"}}, max_steps=4)
    scheduler = result["lr_scheduler"]["scheduler"]
    assert scheduler.parts == [[0], [1]]
    assert isinstance(scheduler._schedulers[0], CosineAnnealing)
    stepped(result["optimizer"], scheduler, 4)
    result["optimizer"].load_state_dict(result["optimizer"].state_dict())
    assert scheduler.parts == [[0], [1]]
    assert scheduler.get_last_lr() == [0.0, 0.0]


RULES = [
    {"match": "bias", "sched": {"name": "polynomial", "power": 1.0}},
    {"match": "weight", "optimizer": {"name": "adamw", "lr": 0.3}},
]


@pytest.mark.parametrize("sched", [None, {"name": "cosine", "warmup_steps": 50}])
def test_curves_of_long_runs_are_sampled_where_all_parts_are_closed_forms(sched):
    result = built({"sched": sched, "param_groups": RULES}, max_steps=20_000)
    scheduler, before = (
        result["lr_scheduler"]["scheduler"],
        copy.deepcopy(result["lr_scheduler"]["scheduler"].state_dict()),
    )
    curves = lr_curves(scheduler, 20_000)
    positions, sampled = sampled_curves(scheduler, 300_000)
    assert len(positions) < 5000
    for samples, curve in zip(sampled, curves, strict=True):
        for place, lr in zip(positions, samples, strict=True):
            assert lr == pytest.approx(curve[min(place, 19_999)], abs=1e-5)
    assert scheduler.state_dict() == before


def test_a_part_without_a_closed_form_is_named():
    optimizer = two_parts()
    first, second = parts_of(optimizer)
    chain = ChainedScheduler([StepLR(first, step_size=2)])
    scheduler = parts_scheduler(optimizer, [CosineAnnealing(second, max_steps=9), chain])
    with pytest.raises(ValueError, match="the LR of ChainedScheduler is known only step by step"):
        sampled_curves(scheduler, 300_000)


def test_the_length_of_parts_is_that_of_the_longest():
    optimizer = two_parts()
    first, second = parts_of(optimizer)
    ends = [CosineAnnealing(part, max_steps=steps) for part, steps in ((first, 9), (second, 20))]
    assert own_length(parts_scheduler(optimizer, ends)) == 21
    assert own_length(parts_scheduler(optimizer, [ends[0], StepLR(second, step_size=2)])) == 10  # one has no end
