"""LARC on FSDP2's sharded layers does what it does on whole layers."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from optim.larc.larc_fsdp2 import CASES, make_model, train

SCRIPT = Path(__file__).with_name("larc_fsdp2.py")
WORLD_SIZE = 2


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("larc_fsdp2")
    ranks = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(rank), str(WORLD_SIZE), folder / "store", folder / "result.pt"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD_SIZE)
    ]
    try:
        outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * WORLD_SIZE, "\n".join(outputs)
    return torch.load(folder / "result.pt", weights_only=True)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_with_sharded_layers_equal_one_process(sharded, name):
    model = make_model()
    initial = [p.detach().clone() for p in model.parameters()]
    weights, factors = train(model, CASES[name](list(model.parameters())))
    sharded_weights, sharded_factors = sharded[name]
    torch.testing.assert_close(sharded_weights, weights, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(sharded_factors, factors, rtol=1e-11, atol=1e-13)
    assert all(not torch.equal(w, i) for w, i in zip(weights, initial, strict=True))


def test_all_norms_of_a_step_travel_in_one_all_reduce(sharded):
    assert sharded["all-reduces"] == {"gradient": 1, "update": 1}
