"""Runs of the recipe on the tiny corpus, in this process and as commands."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT
from hydra import compose, initialize_config_module

from lightning_novograd.recipes.asr.training.run import run

QUICK = [
    "model=quartznet_small",
    "data=manifest",
    "data.batch_size=4",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
    "+trainer.enable_model_summary=false",
]


def manifests(path: Path) -> list[str]:
    return [f"data.{split}={path}" for split in ("train", "dev", "test")]


def train(run_dir: Path, overrides: list[str]) -> dict:
    with initialize_config_module("lightning_novograd.conf", version_base="1.3"):
        return run(compose("asr", overrides=QUICK + overrides), run_dir)


def command(*overrides: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "asr" / "train.py"), *QUICK, *overrides],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
