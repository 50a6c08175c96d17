"""One optimizer step does not depend on how its global batch is split over ranks and micro-batches."""

from pathlib import Path

import pytest
import torch
from ranks import run_ranks

SCRIPT = Path(__file__).with_name("ddp_update.py")


def train(manifest: Path, out: Path, batch_size: int, accumulate: int, world_size: int) -> dict:
    run_ranks(SCRIPT, world_size, manifest, out, batch_size, accumulate, world_size)
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="module")
def whole_batch(tiny_corpus, tmp_path_factory) -> dict:
    return train(tiny_corpus, tmp_path_factory.mktemp("whole") / "out.pt", batch_size=8, accumulate=1, world_size=1)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "world_size"),
    [
        pytest.param(2, 2, 2, id="2 ranks x 2 micro-batches of 2"),
        pytest.param(2, 4, 1, id="1 rank x 4 micro-batches of 2"),
        pytest.param(4, 1, 2, id="2 ranks x 1 batch of 4", marks=pytest.mark.slow),
    ],
)
def test_update_is_that_of_the_whole_batch(tiny_corpus, whole_batch, tmp_path, batch_size, accumulate, world_size):
    split = train(tiny_corpus, tmp_path / "out.pt", batch_size, accumulate, world_size)
    assert split["steps"] == whole_batch["steps"] == 6
    for name, expected in whole_batch["weights"].items():
        torch.testing.assert_close(split["weights"][name], expected, rtol=1e-9, atol=1e-9, msg=name)
