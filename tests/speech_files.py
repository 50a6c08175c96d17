"""Small recordings and manifests for the tests of the recipe's data."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

LABELS = " abcdefghijklmnopqrstuvwxyz'"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write_audio(path: Path, seconds: float = 1.0, rate: int = 16000, channels: int = 1, seed: int = 0) -> Path:
    """Quiet noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (round(seconds * rate), channels)
    soundfile.write(str(path), np.random.default_rng(seed).uniform(-0.1, 0.1, shape), rate, subtype="PCM_16")
    return path


def write_manifest(path: Path, entries: Sequence[dict[str, Any] | str]) -> Path:
    """One line per entry; strings are written as they are."""
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_corpus(folder: Path, name: str, size: int) -> Path:
    """A manifest of `size` utterances of 0.2 to 0.6 s, each with a text of its own."""
    entries = []
    for i in range(size):
        seconds = 0.2 + 0.4 * (i * 7 % size) / size
        write_audio(folder / "audio" / f"{name}_{i}.wav", seconds, seed=i)
        text = " ".join(DIGITS[int(digit)] for digit in f"{i:02d}")
        entries.append({"audio_filepath": f"audio/{name}_{i}.wav", "duration": seconds, "text": text})
    return write_manifest(folder / f"{name}.json", entries)
