"""Two ranks over gloo: they agree on what is left out, and what they log is of both."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from tiny_speech import MODEL, OPTIM, batch

from lightning_novograd.recipes.asr.training.loss import ctc_losses
from lightning_novograd.recipes.asr.training.module import CTCModule


@pytest.mark.slow
def test_two_ranks(tmp_path):
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "two_ranks.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in (0, 1))

    # NaN on one rank: the step is left out on both, and they go on with the same weights
    for seen in (first, second):
        assert (seen["skipped"], seen["step"]) == (1, 3)
        assert all(seen["statistics"])
    assert first["weights"] == second["weights"]
    error = "DataError: optimizer step 2 (epoch 1): samples that are not finite (NaN or infinity) in m.json:21"
    assert (first["error"], second["error"]) == (error, error)

    assert len({*first["noise"], *second["noise"]}) == 12

    # the mean over the utterances of both, in the order of evaluation: that of rank 0 has rank 0's running statistics
    assert first["dev_loss"] == pytest.approx(second["dev_loss"])
    losses = []
    for rank, sets in enumerate(([(20, 3), (21, 2)], [(22, 1), (23, 1)])):
        model = CTCModule(MODEL, OPTIM)
        model.load_state_dict(torch.load(tmp_path / f"rank_{rank}.pt", weights_only=True))
        for seed, size in sets:
            one = batch(seed, size=size)
            with torch.no_grad():
                log_probs, lens = model.eval()(one.wave_BS, one.wave_lens_B)
            losses += ctc_losses(log_probs, lens, one.targets_BU, one.target_lens_B, model.alphabet.blank)
    assert len(losses) == 7
    assert first["dev_loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
