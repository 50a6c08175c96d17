"""A tiny spoken corpus: noise bursts with texts, enough to run the recipe, not to learn from."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import speech_runs


def write_corpus(folder: Path, utterances: int = 16, seed: int = 1) -> Path:
    """Write `utterances` FLAC files of 0.5 to 1.5 s with texts over ' ', a, b, and their manifest."""
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(utterances):
        samples = int(rng.integers(8000, 24000))
        soundfile.write(folder / f"{i}.flac", 0.1 * rng.standard_normal(samples), 16000)
        text = " ".join("".join(rng.choice(list("ab"), size=3)) for _ in range(2))
        lines.append(json.dumps({"audio_filepath": f"{i}.flac", "duration": samples / 16000, "text": text}))
    manifest = folder / "train.json"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory) -> Path:
    """Manifest of 16 utterances."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def finished(tiny_corpus, tmp_path_factory) -> tuple[Path, dict]:
    run_dir = tmp_path_factory.mktemp("run")
    return run_dir, speech_runs.train(run_dir, [*speech_runs.manifests(tiny_corpus), "layer_monitor=2"])
