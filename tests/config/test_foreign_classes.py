"""Optimizers and schedulers of other packages: whatever they look at and however they keep it."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, StepLR

from lightning_novograd.config import RunLength, SchedConfig, build_optimizers, build_scheduler, parse_optim
from lightning_novograd.errors import ConfigError
from lightning_novograd.registry import (
    Range,
    get_scheduler,
    register_optimizer,
    register_scheduler,
    scheduler_settings,
    unregister_optimizer,
    unregister_scheduler,
)


def sgd(**sched):
    return {"name": "sgd", "lr": 0.1, "momentum": 0.9, "sched": {"interval": "step", **sched}}


class ReadsItsParameters(SGD):
    def __init__(self, params, lr: float = 0.1):
        params = list(params)
        self.elements = sum(p.numel() for p in params)
        super().__init__(params, lr=lr)


def test_an_optimizer_may_read_its_parameters_as_tensors():
    register_optimizer("reads_its_parameters", ReadsItsParameters)
    try:
        built = build_optimizers({"name": "reads_its_parameters", "lr": 0.2}, nn.Linear(2, 2))
        assert built["optimizer"].elements == 6
    finally:
        unregister_optimizer("reads_its_parameters")


@pytest.mark.parametrize(
    ("changes", "path"),
    [({"lr": 2.0}, "optim.lr"), ({"param_groups": [{"match": "*", "lr": 2.0}]}, "optim.param_groups[0].lr")],
)
def test_the_ranges_of_a_registration_hold_in_the_block_and_in_its_rules(changes, path):
    ranges = {"lr": Range("below 1", lambda value: value < 1)}
    register_optimizer("reads_its_parameters", ReadsItsParameters, ranges=ranges)
    try:
        with pytest.raises(ConfigError, match=r"2\.0 is out of range; must be below 1") as caught:
            parse_optim({"name": "reads_its_parameters", "lr": 0.2, **changes})
        assert caught.value.path == path
    finally:
        unregister_optimizer("reads_its_parameters")


class Keeps(LRScheduler):
    """Keeps its arguments as torch's own schedulers do: plainly, one for each group, behind an underscore."""

    def __init__(self, optimizer, *, gamma=0.9, rate=1.0, power=1.0, last_epoch=-1):
        self.gamma, self.rates, self._power = gamma, [rate], power
        super().__init__(optimizer, last_epoch)

    def get_lr(self):
        return [lr * self.gamma for lr in self.base_lrs]


class SubCyclic(CyclicLR):
    """Keeps its arguments as its base does."""


@pytest.mark.parametrize(
    ("cls", "kept"),
    [(Keeps, {"gamma", "rates", "_power"}), (SubCyclic, {"max_lrs", "total_size", "step_ratio", "gamma", "mode"})],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_resumed_run_knows_what_a_scheduler_was_built_with(cls, kept):
    assert kept <= scheduler_settings(cls)
    assert not {"last_epoch", "base_lrs", "_schedulers"} & scheduler_settings(cls)


@pytest.mark.parametrize("steps", [-5, 0])
def test_the_length_that_is_filled_in_is_checked_too(steps):
    with pytest.raises(ConfigError, match="must be at least 1") as caught:
        build_optimizers(
            sgd(name="CosineAnnealingLR"), nn.Linear(2, 1), max_steps=RunLength(steps, "a run of this length")
        )
    assert caught.value.path == "optim.sched.T_max"


@pytest.mark.parametrize(
    ("sched", "path"),
    [
        (SchedConfig(name="StepLR", args={"step_size": "3"}), "optim.sched"),
        (SchedConfig(name="StepLR", args={"step_size": 0}), "optim.sched.step_size"),
        (SchedConfig(name="SequentialLR", args={"milestones": [2]}), "optim.sched"),
        (SchedConfig(name="NoSuchLR"), "optim.sched.name"),
    ],
    ids=["text", "range", "without schedulers", "name"],
)
def test_a_config_made_by_hand_is_refused_when_it_is_built(sched, path):
    optimizer = torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1)
    with pytest.raises(ConfigError) as caught:
        build_scheduler(sched, optimizer, 10)
    assert caught.value.path.startswith(path)


def test_a_class_of_torchs_under_another_name_is_stepped_as_whoever_names_it_says():
    register_scheduler("my_step", StepLR, length=None)
    try:
        assert (get_scheduler("my_step").interval, get_scheduler("StepLR").interval) == ("step", "epoch")
    finally:
        unregister_scheduler("my_step")


def in_a_process(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_a_built_in_may_be_replaced_before_anything_was_looked_up():
    code = """
import torch
from lightning_novograd.registry import get_optimizer, register_optimizer, unregister_optimizer
class Mine(torch.optim.SGD): ...
unregister_optimizer("SGD")
register_optimizer("SGD", Mine)
print(get_optimizer("sgd").cls.__name__)
"""
    assert in_a_process(code) == "Mine"


def test_a_module_that_fails_half_way_says_the_same_each_time(tmp_path):
    (tmp_path / "half_done.py").write_text(
        "import torch\nfrom lightning_novograd.registry import register_optimizer\n"
        "@register_optimizer('HalfDone')\nclass HalfDone(torch.optim.SGD): ...\n"
        "HalfDone.__module__ = __name__\nraise RuntimeError('half done')\n"
    )
    code = f"""
import lightning_novograd.optim
from lightning_novograd.registry import available_optimizers
lightning_novograd.optim.__path__.append({str(tmp_path)!r})
for _ in range(2):
    try:
        available_optimizers()
    except RuntimeError as error:
        print(error)
"""
    assert in_a_process(code).splitlines() == ["half done", "half done"]
