"""Utterances to padded batches."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.data.audio import load_audio
from lightning_novograd.recipes.asr.data.augment import Augment
from lightning_novograd.recipes.asr.data.manifest import Utterance
from lightning_novograd.recipes.asr.text.alphabet import Alphabet

INT16_SCALE = 32768.0


class Item(NamedTuple):
    """One utterance, loaded."""

    wave: np.ndarray
    targets: list[int]
    text: str


class Batch(NamedTuple):
    """Utterances padded with zeros to the longest.

    `wave_BS` is float32, `targets_BU` holds class ids; both `lens` are int64 and count samples and characters.
    """

    wave_BS: Tensor
    wave_lens_B: Tensor
    targets_BU: Tensor
    target_lens_B: Tensor
    texts: list[str]


class SpeechDataset(Dataset[Item]):
    """The utterances of a manifest, looked up by ``(epoch, index)``.

    Args:
        utterances: as `read_manifest` gives them.
        alphabet: characters to class ids.
        sample_rate: Hz.
        downmix: average several channels.
        cache: decode everything now and keep it as 16-bit samples in shared memory (2 bytes per sample: 115 MB per
            hour at 16 kHz). Without it files are decoded when they are needed.
        augment: changes the waveforms; None leaves them as they are.

    Raises:
        DataError: audio that cannot be decoded, naming manifest line and file; with `cache` it is raised here.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        alphabet: Alphabet,
        sample_rate: int,
        *,
        downmix: bool = False,
        cache: bool = False,
        augment: Augment | None = None,
    ) -> None:
        self.utterances = list(utterances)
        self.targets = [alphabet.encode(u.text) for u in self.utterances]
        self.sample_rate, self.downmix = sample_rate, downmix
        self.augment = augment
        self._samples: Tensor | None = None
        if cache:
            with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:  # libsndfile lets other threads run
                waves = list(pool.map(self._load_int16, range(len(self))))
            self._ends = np.cumsum([len(wave) for wave in waves])
            self._samples = torch.from_numpy(np.concatenate(waves)).share_memory_()

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, index = key
        wave = self._wave(index)
        if self.augment is not None:
            wave = self.augment(wave, epoch, index)
        return Item(wave, self.targets[index], self.utterances[index].text)

    @property
    def durations(self) -> list[float]:
        """s, of all utterances."""
        return [u.duration for u in self.utterances]

    def _wave(self, index: int) -> np.ndarray:
        if self._samples is None:
            return self._load(index)
        start = self._ends[index - 1] if index else 0
        return self._samples.numpy()[start : self._ends[index]] * np.float32(1 / INT16_SCALE)

    def _load(self, index: int) -> np.ndarray:
        u = self.utterances[index]
        duration = None if u.offset is None else u.duration
        try:
            return load_audio(
                u.audio, self.sample_rate, offset=u.offset or 0.0, duration=duration, downmix=self.downmix
            )
        except DataError as error:
            raise DataError(f"{u.where}: {error}") from error

    def _load_int16(self, index: int) -> np.ndarray:
        return np.clip(np.rint(self._load(index) * INT16_SCALE), -INT16_SCALE, INT16_SCALE - 1).astype(np.int16)


def collate(items: Sequence[Item]) -> Batch:
    """Pad utterances to the longest of them.

    It copies with numpy: torch would wake its threads for every row, which the model's own may be using.
    """
    wave_lens = [len(item.wave) for item in items]
    target_lens = [len(item.targets) for item in items]
    wave_BS = np.zeros((len(items), max(wave_lens)), dtype=np.float32)
    targets_BU = np.zeros((len(items), max(target_lens)), dtype=np.int64)
    for row, item in enumerate(items):
        wave_BS[row, : wave_lens[row]] = item.wave
        targets_BU[row, : target_lens[row]] = item.targets
    return Batch(
        torch.from_numpy(wave_BS),
        torch.tensor(wave_lens),
        torch.from_numpy(targets_BU),
        torch.tensor(target_lens),
        [item.text for item in items],
    )
