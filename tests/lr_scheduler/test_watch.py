"""A schedule that counts optimizer steps says so where its host steps it once per epoch, and is quiet elsewhere."""

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import SequentialLR

from lightning_novograd.config import build_optimizers
from lightning_novograd.lr_scheduler import CosineAnnealing, WarmupPolicy

SAID = "counts optimizer steps, but the optimizer made 12 between two"


def make() -> tuple[torch.optim.Optimizer, CosineAnnealing]:
    groups = [{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(3)]
    optimizer = torch.optim.SGD(groups, lr=0.05)
    return optimizer, CosineAnnealing(optimizer, max_steps=48)


def train(optimizer: Any, scheduler: Any, epochs: int = 4, batches: int = 12, every: int | None = None) -> list[str]:
    """Warnings of a run that steps the schedule after each epoch, or every so many steps."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in range(1, epochs * batches + 1):
            optimizer.step()
            if batch % (every or batches) == 0:
                scheduler.step()
    return [str(warning.message) for warning in caught if "counts optimizer steps" in str(warning.message)]


def test_once_per_epoch_is_said_once():
    (said,) = train(*make())
    assert f"CosineAnnealing {SAID}" in said
    assert "'interval': 'step'" in said
    assert "OptimCLI" in said


def test_small_epochs_are_noticed_later():
    assert len(train(*make(), epochs=8, batches=3)) == 1


def test_the_warning_points_at_the_caller(recwarn):
    optimizer, scheduler = make()
    for _ in range(12):
        optimizer.step()
    scheduler.step()
    assert recwarn.pop(UserWarning).filename == __file__


def test_once_per_step_says_nothing():
    assert not train(*make(), every=1)


def test_several_schedules_of_an_optimizer_are_told_apart():
    optimizer, scheduler = make()
    other = CosineAnnealing(optimizer, max_steps=48)
    assert not train(optimizer, scheduler, every=1)
    with pytest.warns(UserWarning, match="the optimizer made 48 between two"):
        other.step()


def test_accumulation_and_skipped_steps_say_nothing():
    optimizer, scheduler = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in range(100):
            if batch % 4 == 0 and not 20 < batch < 60:  # every fourth micro-batch, and an overflow for a while
                optimizer.step()
            scheduler.step()
        for batch in range(100):  # the schedule follows the optimizer
            if batch % 4 == 0:
                optimizer.step()
                scheduler.step()


def test_a_few_steps_before_the_training_say_nothing():
    optimizer, scheduler = make()
    for _ in range(9):
        optimizer.step()
    assert not train(optimizer, scheduler, every=1)


def test_steps_that_a_fused_optimizer_skips_on_the_device_say_nothing():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.05, fused=True)
    scheduler = CosineAnnealing(optimizer, max_steps=48)
    optimizer.found_inf = torch.tensor(1.0)  # as GradScaler.step sets it
    for _ in range(40):
        optimizer.step()
    del optimizer.found_inf
    assert not train(optimizer, scheduler, every=1)


def test_a_resumed_run_says_nothing():
    optimizer, scheduler = make()
    state = optimizer.state_dict(), scheduler.state_dict()
    for _ in range(100):  # Lightning's LR finder, on the same optimizer
        optimizer.step()
    optimizer.load_state_dict(state[0])
    scheduler.load_state_dict(state[1])
    assert not train(optimizer, scheduler, every=1)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize(("every", "times"), [(1, 0), (12, 1)])
def test_a_copy_watches_its_own_optimizer(copied, every, times):
    pair = make()
    train(*pair, epochs=1, every=1)
    optimizer, scheduler = copied(pair)
    assert scheduler.optimizer is optimizer
    assert len(train(optimizer, scheduler, every=every)) == times
    assert not train(*pair, every=1)


def test_a_schedule_that_an_older_version_pickled():
    optimizer, scheduler = make()
    del scheduler._watch
    assert len(train(*pickle.loads(pickle.dumps((optimizer, scheduler))))) == 1


def test_the_turn_of_a_later_member_is_no_gap():
    optimizer, _ = make()
    members = [WarmupPolicy(optimizer, warmup_steps=20), CosineAnnealing(optimizer, max_steps=28)]
    assert not train(optimizer, SequentialLR(optimizer, members, [20]), every=1)


def test_a_sequence_that_is_stepped_per_epoch_is_noticed():
    optimizer, _ = make()
    members = [WarmupPolicy(optimizer, warmup_steps=2), CosineAnnealing(optimizer, max_steps=28)]
    assert SAID in train(optimizer, SequentialLR(optimizer, members, [2]))[0]


def test_another_unit_that_is_meant():
    optimizer, scheduler = make()
    scheduler.steps_apart = None
    assert not train(optimizer, scheduler)


@pytest.mark.parametrize(
    ("sched", "every"),
    [
        ({"name": "cosine", "interval": "epoch", "max_epochs": 4}, 12),
        ({"name": "ExpDecay", "decay_steps": 3, "decay_rate": 0.5, "use_staircase_decay": True, "frequency": 6}, 6),
        ({"name": "ExponentialLR", "gamma": 0.9, "interval": "step", "warmup_steps": 5}, 1),
        (
            {"name": "SequentialLR", "milestones": [2], "schedulers": [{"name": "warmup"}, {"name": "cosine"}]}
            | {"interval": "epoch", "max_epochs": 4},
            12,
        ),
    ],
)
def test_a_block_says_what_is_meant(sched, every):
    built = build_optimizers({"name": "sgd", "lr": 0.1, "sched": sched}, nn.Linear(1, 1), max_steps=48)
    assert not train(built["optimizer"], built["lr_scheduler"]["scheduler"], every=every)


@pytest.mark.slow
def test_a_compiled_step_is_not_compiled_anew():
    optimizer, _scheduler = make()
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    for group in optimizer.param_groups:
        group["params"][0].grad = torch.ones(1)
    step = torch.compile(optimizer.step, backend=backend)
    for _ in range(3):
        step()
    first = len(compiled)
    for _ in range(5):
        step()
    assert len(compiled) == first > 0
