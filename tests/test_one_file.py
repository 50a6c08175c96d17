"""An optimizer or a schedule is one new file: `describe`, configs and runs know it, and nothing else has changed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

SCHEDULE = '''
"""A schedule of one's own."""

from typing import Any

from torch.optim import Optimizer

from lightning_novograd.lr_scheduler.phases import Unpack, Warmup, WarmupLR, number
from lightning_novograd.registry import register_scheduler


@register_scheduler("Mine", aliases=["quarter_circle"])
class Mine(WarmupLR):
    """Warmup, then a quarter of a circle: `max(base * sqrt(1 - (s/M/r)^2), min_lr)`, `r` = `radius`.

    Args:
        optimizer: whose LR to set.
        radius: in lengths of the run, at least 1.

    """

    @staticmethod
    def annealing(step: int, base_lr: float, *, max_steps: int, min_lr: float, radius: float, **_: Any) -> float:
        """`max(base * sqrt(1 - (s/M/r)^2), min_lr)`."""
        return max(base_lr * (1 - (step / max_steps / radius) ** 2) ** 0.5, min_lr)

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_steps: int,
        radius: float = 1.0,
        min_lr: float = 0.0,
        **warmup: Unpack[Warmup],
    ) -> None:
        self.arguments = {"radius": number("radius", radius, low=1.0)}
        super().__init__(optimizer, max_steps=max_steps, min_lr=min_lr, **warmup)
'''

OPTIMIZER = '''
"""An optimizer of one's own."""

import torch

from lightning_novograd.registry import Range, register_optimizer


@register_optimizer("Mine", aliases=["sign_descent"], ranges={"lr": Range("above 0", lambda value: value > 0)})
class Mine(torch.optim.Optimizer):
    """Moves every weight by `lr` against the sign of its gradient.

    Args:
        params: weights or param groups.
        lr: length of a step, above 0.
        decay: part of the weight that is taken off in each step, 0..1.

    """

    def __init__(self, params, lr: float = 1e-3, *, decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "decay": decay})

    @torch.no_grad()
    def step(self, closure=None):
        """One step."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.mul_(1 - group["decay"]).sub_(weight.grad.sign(), alpha=group["lr"])
        return loss
'''

# Prints one line of JSON: the class in the registry, the parsed names, the LRs of a run, an error
RUN = """
import json, sys
from tiny_fit import Net, loader, trainer
import lightning_novograd
from lightning_novograd import ConfigError, parse_optim
block, wrong = json.loads(sys.argv[1])
config = parse_optim(block)
net = Net(block)
before = net.layer.weight.detach().clone()
run = trainer(max_epochs=2)
run.fit(net, loader())
try:
    parse_optim(wrong)
except ConfigError as error:
    refused = str(error)
print(json.dumps({
    "package": lightning_novograd.__file__,
    "optimizer": config.name,
    "scheduler": config.sched and config.sched.name,
    "built": type(run.optimizers[0]).__module__,
    "lrs": net.lrs,
    "moved": (net.layer.weight - before).abs().max().item(),
    "refused": refused,
}))
"""


@pytest.fixture
def package(tmp_path):
    """A copy of the package to add a file to, and `run(*arguments)` for Python with that copy."""
    shutil.copytree(
        ROOT / "lightning_novograd", tmp_path / "lightning_novograd", ignore=shutil.ignore_patterns("__pycache__")
    )

    def run(*arguments: str) -> str:
        path = os.pathsep.join([str(tmp_path), str(ROOT / "tests")])
        # -P: not the folder that the interpreter is started in, only those of PYTHONPATH
        done = subprocess.run(
            [sys.executable, "-P", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return tmp_path / "lightning_novograd", run


def result_of(run, block: dict, wrong: dict) -> dict:
    return json.loads(run("-c", RUN, json.dumps([block, wrong])).splitlines()[-1])


@pytest.mark.slow
def test_a_schedule(package):
    folder, run = package
    (folder / "lr_scheduler" / "mine.py").write_text(SCHEDULE)

    described = run("-m", "lightning_novograd", "describe", "scheduler", "Mine").splitlines()
    assert described[0] == "Mine"
    assert described[2].strip() == "also called quarter_circle"
    rows = [" ".join(line.split()) for line in described]
    assert "radius number 1.0 in lengths of the run, at least 1" in rows
    assert any(row.startswith("warmup_ratio number or null null") for row in rows)

    sched = {"name": "quarter_circle", "warmup_steps": 1, "radius": 2}
    result = result_of(
        run,
        {"name": "novograd", "lr": 0.1, "sched": sched},
        {"name": "novograd", "lr": 0.1, "sched": {**sched, "radius": 0.5}},
    )
    assert Path(result["package"]).parent == folder
    assert result["scheduler"] == "Mine"
    assert result["lrs"] == pytest.approx([0.05] + [0.1] + [0.1 * (1 - (s / 16) ** 2) ** 0.5 for s in range(2, 8)])
    assert result["refused"].startswith("optim.sched.radius: 0.5 is out of range; must be at least 1")


@pytest.mark.slow
def test_its_reference_values_are_found_by_its_name(package):
    folder, run = package
    (folder / "lr_scheduler" / "mine.py").write_text(SCHEDULE)
    tests = folder.parent / "tests"
    (tests / "lr_scheduler").mkdir(parents=True)
    for name in ("conftest.py", "policies.py", "lr_scheduler/test_golden.py", "lr_scheduler/test_base.py"):
        shutil.copy(ROOT / "tests" / name, tests / name)
    shutil.copytree(ROOT / "tests" / "golden", tests / "golden")
    shutil.copy(ROOT / "pyproject.toml", folder.parent)
    pytest_in_copy = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "Mine or reference_values")

    with pytest.raises(AssertionError, match=r"neither in .*schedules nor in another table"):
        run(*pytest_in_copy, "tests/lr_scheduler/test_golden.py")

    values = {
        "args": {"max_steps": 5},
        "base_lr": 0.1,
        "lr": [0.1, 0.1 * 0.96**0.5, 0.1 * 0.84**0.5, 0.08, 0.06, 0.0, 0.0],
    }
    golden = tests / "golden" / "schedules" / "Mine.json"
    golden.parent.mkdir(exist_ok=True)
    golden.write_text(json.dumps({"source": "by hand", "cases": [values]}))
    assert "test_values[Mine-" in run(*pytest_in_copy, "-vv", "tests/lr_scheduler")


def test_an_optimizer(package):
    folder, run = package
    (folder / "optim" / "mine.py").write_text(OPTIMIZER)

    described = run("-m", "lightning_novograd", "describe", "optimizer", "sign_descent").splitlines()
    assert described[0] == "Mine"
    assert described[1].strip() == "Moves every weight by `lr` against the sign of its gradient"
    assert "lr number 0.001 length of a step, above 0" in [" ".join(line.split()) for line in described]

    block = {"name": "mine", "lr": 0.125, "decay": 0.5, "sched": {"name": "warmup"}}
    result = result_of(run, block, {**block, "lr": 0})
    assert Path(result["package"]).parent == folder
    assert result["optimizer"] == "Mine"
    assert result["built"] == "lightning_novograd.optim.mine"
    assert result["lrs"] == [0.125] * 8
    assert result["moved"] > 0.01
    assert result["refused"].startswith("optim.lr: 0.0 is out of range; must be above 0")
