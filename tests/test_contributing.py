"""CONTRIBUTING.md's examples: each is one file that, put where it says, needs nothing else."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from lightning_novograd.recipes.asr.data.manifest import read_manifest
from lightning_novograd.recipes.asr.text.alphabet import Alphabet

TRAIN = """
import torch
from lightning_novograd import build_optimizers

model = torch.nn.Linear(3, 1)
block = {"name": "SignDescent", "lr": 0.5, "sched": {"name": "circle", "warmup_steps": 1}}
built = build_optimizers(block, model, max_steps=11)
optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
before = model.weight.detach().clone()
model(torch.ones(2, 3)).sum().backward()
optimizer.step()
assert torch.allclose(model.weight, before - 0.25)
print([round(scheduler.lr_at(step, 0.5), 3) for step in (0, 1, 7, 11, 12)])
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A copy of the package with the examples in it."""
    folder = tmp_path_factory.mktemp("copy")
    for name, place in (("lightning_novograd", ""), ("conf", "lightning_novograd"), ("recipes", "lightning_novograd")):
        shutil.copytree(ROOT / name, folder / place / name, ignore=shutil.ignore_patterns("__pycache__"))
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 3
    for path, code in blocks:
        target = folder / ("lightning_novograd" if path.startswith("recipes") else "") / path
        assert not target.exists()
        target.write_text(code, encoding="utf-8")
    return folder


def run_in(folder: Path, *arguments: str | Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_optimizer_and_the_schedule_train(installed):
    assert run_in(installed, "-c", TRAIN) == "[0.25, 0.5, 0.4, 0.0, 0.0]\n"


@pytest.mark.parametrize(
    ("kind", "name", "shown"),
    [
        ("optimizer", "signdescent", ["sign of its gradient", "learning rate, at least 0", "1802.04434"]),
        ("scheduler", "QuarterCircle", ["quarter of a circle", "warmup_ratio"]),
    ],
)
def test_describe_shows_them(installed, kind, name, shown):
    text = run_in(installed, "-m", "lightning_novograd", "describe", kind, name)
    assert [words for words in shown if words not in text] == []


def test_the_corpus_is_made(installed, tmp_path):
    prepare = ("-m", "lightning_novograd.recipes.asr.prepare", "beeps", "--out", tmp_path, "size=3")
    assert f"train: 3 utterances in {tmp_path}/train.json" in run_in(installed, *prepare)
    assert [utterance.text for utterance in read_manifest(tmp_path / "dev.json", Alphabet("abc"))] == ["a", "ab", "abc"]
