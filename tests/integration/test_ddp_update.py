"""One optimizer step does not depend on how its global batch is split over ranks and micro-batches."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from ranks import run_ranks

SCRIPT = Path(__file__).with_name("ddp_update.py")


def train(manifest: Path, out: Path, batch_size: int, accumulate: int, world_size: int, *options: str) -> dict:
    run_ranks(SCRIPT, world_size, manifest, out, batch_size, accumulate, world_size, *options)
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


@pytest.fixture(scope="module")
def uneven_corpus(tmp_path_factory) -> Path:
    """19 utterances, of 8 a global batch, with texts of 1 to 9 characters."""
    folder, rng, lines = tmp_path_factory.mktemp("uneven"), np.random.default_rng(2), []
    for i in range(19):
        samples = int(rng.integers(8000, 24000))
        soundfile.write(folder / f"{i}.flac", 0.1 * rng.standard_normal(samples), 16000)
        text = "".join(rng.choice(list("ab"), size=1 + i % 9))
        lines.append(json.dumps({"audio_filepath": f"{i}.flac", "duration": samples / 16000, "text": text}))
    (folder / "train.json").write_text("\n".join(lines) + "\n")
    return folder / "train.json"


@pytest.mark.slow
@pytest.mark.parametrize(("reduction", "last"), [("mean_volume", "keep"), ("mean_volume", "drop"), ("sum", "keep")])
def test_texts_of_unequal_length_and_a_shorter_last_step(uneven_corpus, tmp_path, reduction, last):
    whole = train(uneven_corpus, tmp_path / "whole.pt", 8, 1, 1, reduction, last)
    assert whole["steps"] == (9 if last == "keep" else 6)
    split = train(uneven_corpus, tmp_path / "split.pt", 2, 2, 2, reduction, last)
    assert split["steps"] == whole["steps"]
    for name, expected in whole["weights"].items():
        torch.testing.assert_close(split["weights"][name], expected, rtol=1e-9, atol=1e-9, msg=name)
