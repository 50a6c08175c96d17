"""A set of tones, heard with mistakes, with names and texts that a page must not take for its own code."""

from pathlib import Path
from typing import Any

import numpy as np
import speech_files
import tone_model
from tone_model import ToneRecognizer

from lightning_novograd.recipes.asr.data.dataset import SpeechDataset
from lightning_novograd.recipes.asr.data.manifest import Utterance
from lightning_novograd.recipes.asr.recognition.evaluation import count_errors

ATTACK = "<script>alert(1)</script><img/src=x/onerror=alert(2)>'\"</style>"


class TonesOfReport(ToneRecognizer):
    num_parameters = 12345


def tone_set(folder: Path, count: int = 8, **changes: Any) -> SpeechDataset:
    """`count` utterances of two speakers; the first has a hostile speaker, name and text."""
    utterances, entries = [], []
    for index in range(count):
        words = tone_model.random_words(3 + index, seed=index)
        wave, _ = tone_model.speak(words)
        name = ATTACK.replace("/", "\u2215") if index == 0 else str(index)
        path = tone_model.write(folder / f"{name}.wav", wave)
        text = f"{ATTACK} {' '.join(words)}" if index == 0 else " ".join(words)
        entries.append({"speaker": ATTACK if index == 0 else f"speaker {index % 2}"})
        duration = len(wave) / tone_model.RATE
        utterances.append(Utterance(path, duration, text, index + 1, folder / f"{ATTACK[:8]}.json"))
    speech_files.write_manifest(utterances[0].manifest, entries)

    class Set(SpeechDataset):
        def __init__(self) -> None:  # targets are of no use here, and the texts are none of the alphabet
            self.utterances, self.sample_rate, self.downmix = utterances, tone_model.RATE, False
            self.targets, self.speeds, self._samples = [[] for _ in utterances], (1.0,), None

        def __getitem__(self, key):
            wave, _ = tone_model.speak(tone_model.random_words(3 + key[1], seed=key[1]))
            return type("Item", (), {"wave": np.asarray(wave)})

    return Set()


def heard(dataset: SpeechDataset) -> list[str]:
    """One word in each is another, and every second text has one too many."""
    texts = []
    for index, utterance in enumerate(dataset.utterances):
        words = utterance.text.split()[1:]
        texts.append(" ".join([ATTACK if index == 1 else "x", *words, *(["b", "$x_1"] if index % 2 else [])]))
    return texts


def totals_of(dataset: SpeechDataset, hypotheses: list[str]) -> dict[str, Any]:
    errors = count_errors(dataset, hypotheses)
    return {"checkpoint": f"{ATTACK}.ckpt", **errors, "decoder": f"greedy {ATTACK}", "real_time_factor": 0.25}
