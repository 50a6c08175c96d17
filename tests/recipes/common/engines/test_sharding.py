"""Weights that are spread over two real ranks (FSDP2) train as those of DDP, and their checkpoints are whole files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from ranks import run_ranks
from speech_files import write_corpus
from speech_runs import manifests

from lightning_novograd.recipes.asr.weights.source import load
from lightning_novograd.recipes.common.checkpoints.finite import nonfinite_names

SCRIPT = Path(__file__).with_name("fsdp2_ranks.py")
CASES = ("plain", "accumulated", "skipping", "clipped", "larc", "adamw", "frozen", "bf16")
FSDP2 = ["trainer=fsdp2", "trainer.accelerator=cpu", "trainer.precision=32-true"]


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("fsdp2")
    run_ranks(SCRIPT, 2, folder)
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_fsdp2_trains_as_ddp(seen, case):
    for rank in seen:
        whole, sharded = rank[f"{case} ddp"], rank[f"{case} fsdp2"]
        assert (whole["sharded"], sharded["sharded"]) == (0, len(whole["weights"]))
        assert sharded["skipped"] == whole["skipped"] == (case == "skipping")
        assert sharded["frozen"] == whole["frozen"]
        assert bool(whole["frozen"]) == (case == "frozen")
        assert sharded["losses"] == pytest.approx(whole["losses"], rel=1e-5, nan_ok=True)
        for name, weight in whole["weights"].items():
            torch.testing.assert_close(sharded["weights"][name], weight, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_what_needs_whole_weights_is_refused(seen):
    assert {rank["ema"] for rank in seen} == {
        "ConfigError: optim.ema: the average is of whole weights, and FSDP2Strategy shards them"
    }


def run(folder: Path, corpus: Path, *overrides: str) -> dict:
    """Two processes, as a user starts them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    model = ["model=quartznet_small", "data=manifest", *manifests(corpus), "data.batch_size=4", "data.num_workers=0"]
    done = subprocess.run(
        [
            *(*command, ROOT / "recipes" / "asr" / "train.py", *model, *FSDP2, "trainer.devices=2"),
            *("trainer.max_epochs=3", "checkpoint.save_top_k=-1", f"hydra.run.dir={folder}", *overrides),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_a_run_is_saved_resumed_averaged_and_evaluated(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", "tiny", 24)
    results = run(tmp_path / "whole", corpus, "checkpoint.average=2", "checkpoint.test=best")
    assert (results["optimizer_steps"], results["epochs"]) == (9, 3)
    assert results["model_parameters"] == sum(p.numel() for p in load(tmp_path / "whole").parameters())

    first = next((tmp_path / "whole" / "checkpoints").glob("epoch000*.ckpt"))
    run(tmp_path / "resumed", corpus, f"resume_from={first}")
    ends = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "resumed")
    ]
    for name, weight in ends[0]["state_dict"].items():
        assert torch.equal(ends[1]["state_dict"][name], weight), name
    states = [end["optimizer_states"][0]["state"] for end in ends]
    assert states[0].keys() == states[1].keys()
    for index, state in states[0].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][index][name])), (index, name)

    evaluate = [sys.executable, ROOT / "recipes" / "asr" / "evaluate.py", tmp_path / "whole", "--manifest", corpus]
    done = subprocess.run([*evaluate, "--out", tmp_path / "again.json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["wer"] == pytest.approx(results["test_wer"])


def test_what_is_not_finite_in_a_shard_is_found_without_the_other_ranks():
    class Shard:
        """As a DTensor: whoever computes with it waits for the others."""

        def __init__(self, local):
            self.local = local

        def to_local(self):
            return self.local

    weights = {"a": Shard(torch.tensor([1.0, float("nan")])), "b": Shard(torch.ones(2)), "c": torch.ones(1)}
    assert nonfinite_names(weights) == ["a"]
