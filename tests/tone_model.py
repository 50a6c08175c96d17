"""Speech made of tones, and a recognizer that hears them: words, times and cuts are known exactly."""

from pathlib import Path

import numpy as np
import soundfile
import torch

from lightning_novograd.recipes.asr.recognition.recognizer import Recognizer
from lightning_novograd.recipes.asr.text.alphabet import Alphabet
from lightning_novograd.recipes.asr.text.decode import CTCPath

RATE, FRAME = 1000, 20  # Hz; samples of a frame
TONES = {" ": 300, "a": 100, "b": 200}  # Hz, whole periods in a frame
HUM = 450  # Hz; it is no letter
ALPHABET = Alphabet(" ab")


def tone(hertz: float, seconds: float, level: float = 0.3) -> np.ndarray:
    return level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE).astype(np.float32)


def speak(words: list[str], pause: float = 0.4, hum: float = 0.0) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """A recording of `words`, letters of 100 ms and 40 ms between them; the words with their times in s."""
    parts, times, now = [], [], 0.0

    def add(part: np.ndarray) -> None:
        nonlocal now
        parts.append(part)
        now = round(now + len(part) / RATE, 3)

    for word in words:
        add(tone(TONES[" "], 0.06))
        start = now
        for letter in word:
            add(tone(TONES[letter], 0.1))
            end = now
            add(np.zeros(round(0.04 * RATE), np.float32))
        times.append((word, start, end))
        add(np.zeros(round(pause * RATE), np.float32))
    wave = np.concatenate(parts)
    return wave + tone(HUM, len(wave) / RATE, hum), times


def random_words(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(["a", "b"], size=rng.integers(1, 5))) for _ in range(count)]


def write(path: Path, wave: np.ndarray, rate: int = RATE) -> Path:
    soundfile.write(str(path), wave, rate, subtype="FLOAT")
    return path


class ToneRecognizer:
    """Hears the loudest letter of each frame; remembers the shapes of what it was given."""

    alphabet, sample_rate, frame_seconds = ALPHABET, RATE, FRAME / RATE
    text = Recognizer.text

    def __init__(self) -> None:
        self.batches: list[tuple[int, int]] = []

    def paths(self, wave_BS: torch.Tensor, wave_lens_B: torch.Tensor) -> list[CTCPath]:
        self.batches.append(tuple(wave_BS.shape))
        return [self._path(wave[:n].numpy()) for wave, n in zip(wave_BS, wave_lens_B.tolist(), strict=True)]

    def _path(self, wave: np.ndarray) -> CTCPath:
        frames_TN = wave[: len(wave) // FRAME * FRAME].reshape(-1, FRAME)
        spectrum_TF = np.abs(np.fft.rfft(frames_TN, axis=1))
        bins = [round(TONES[label] * FRAME / RATE) for label in ALPHABET.labels]
        ids_T = spectrum_TF[:, bins].argmax(axis=1)
        ids_T[spectrum_TF[:, bins].max(axis=1) < 0.5] = ALPHABET.blank
        return CTCPath(ids_T, np.full(len(ids_T), -0.1, np.float32))
