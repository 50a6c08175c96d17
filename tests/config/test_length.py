"""The length that a caller gives: numbers that are none, and epochs."""

import math

import pytest
from torch import nn

from lightning_novograd.config import RunLength, build_optimizers
from lightning_novograd.errors import ConfigError

COSINE = {"name": "cosine"}
WARMED = {"name": "StepLR", "step_size": 3, "interval": "step", "warmup_epochs": 2}
EPOCHS = {"name": "CosineAnnealingLR"}


def scheduler(sched, max_steps):
    return build_optimizers({"name": "sgd", "lr": 0.1, "sched": sched}, nn.Linear(2, 2), max_steps=max_steps)[
        "lr_scheduler"
    ]["scheduler"]


@pytest.mark.parametrize(
    ("max_steps", "problem"),
    [
        (0, "0 is out of range; must be at least 1"),
        (-5, "-5 is out of range"),
        (True, "True is not a whole number"),
        (10.5, "10.5 is not a whole number"),
        ("100", "'100' is not a whole number"),
        (math.inf, "inf is not a whole number"),
    ],
)
def test_a_length_that_is_none(max_steps, problem):
    for given in (max_steps, lambda: max_steps):
        with pytest.raises(ConfigError) as caught:
            scheduler(COSINE, given)
        assert caught.value.path == "max_steps"
        assert caught.value.problem.startswith(problem)


@pytest.mark.parametrize(
    ("sched", "key"), [(WARMED, "warmup_epochs"), ({**COSINE, "max_epochs": 3}, "max_epochs"), (EPOCHS, "max_epochs")]
)
@pytest.mark.parametrize(("max_steps", "what"), [(100, "is a number of steps"), (None, "was not given")])
def test_a_schedule_that_counts_epochs_says_how_to_give_them(sched, key, max_steps, what):
    with pytest.raises(ConfigError, match=rf"max_steps {what}; to count epochs, give max_steps=RunLength\(") as caught:
        scheduler(sched, max_steps)
    assert caught.value.path == f"optim.sched.{key}"


@pytest.mark.parametrize(
    "length",
    [
        RunLength(50, "my loop", 5, 10),
        RunLength(50, "my loop", steps_per_epoch=10),
    ],
)
def test_epochs_of_a_run_length(length):
    assert scheduler(WARMED, length)._milestones == [20]
    assert scheduler({**COSINE, "max_epochs": 3}, length).arguments["max_steps"] == 30
    assert scheduler(EPOCHS, length).T_max == 5
    assert scheduler(COSINE, length).arguments["max_steps"] == 50
