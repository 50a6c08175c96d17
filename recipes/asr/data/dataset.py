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
from lightning_novograd.recipes.asr.data.audio import change_speed, load_audio
from lightning_novograd.recipes.asr.data.manifest import Utterance
from lightning_novograd.recipes.asr.text.alphabet import Alphabet

INT16_SCALE = 32768.0


class Item(NamedTuple):
    """One utterance, loaded."""

    wave: np.ndarray
    targets: list[int]
    text: str
    place: str = ""


class Batch(NamedTuple):
    """Utterances padded with zeros to the longest.

    `wave_BS` is float32, `targets_BU` holds class ids; both `lens` are int64 and count samples and characters. `places`
    are the utterances' ``manifest:line``, for messages.
    """

    wave_BS: Tensor
    wave_lens_B: Tensor
    targets_BU: Tensor
    target_lens_B: Tensor
    texts: list[str]
    places: Sequence[str] = ()


class SpeechDataset(Dataset[Item]):
    """The utterances of a manifest, looked up by ``(epoch, index)``.

    Args:
        utterances: as `read_manifest` gives them.
        alphabet: characters to class ids.
        sample_rate: Hz.
        downmix: average several channels.
        cache: decode everything now and keep it as 16-bit samples in shared memory (2 bytes per sample: 115 MB per
            hour at 16 kHz). Without it files are decoded when they are needed.
        speeds: factors to play at; one is drawn for each utterance and epoch.
        seed: of that choice, which depends on nothing else but epoch and index.
        keep_nonfinite: hand on samples that are NaN or infinite where nothing is cached; the training decides.

    Raises:
        DataError: audio that cannot be decoded or has such samples, naming manifest line and file; with `cache` it is
            raised here.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        alphabet: Alphabet,
        sample_rate: int,
        *,
        downmix: bool = False,
        cache: bool = False,
        speeds: Sequence[float] = (1.0,),
        seed: int = 0,
        keep_nonfinite: bool = False,
    ) -> None:
        self.utterances = list(utterances)
        self.targets = [alphabet.encode(u.text) for u in self.utterances]
        self.sample_rate, self.downmix = sample_rate, downmix
        self.speeds, self.seed = tuple(speeds), seed
        self.keep_nonfinite = keep_nonfinite and not cache  # 16 bits have no NaN
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
        wave = change_speed(self._wave(index), self._speed(epoch, index))
        return Item(wave, self.targets[index], self.utterances[index].text, self.utterances[index].where)

    @property
    def durations(self) -> list[float]:
        """s, of all utterances."""
        return [u.duration for u in self.utterances]

    def _speed(self, epoch: int, index: int) -> float:
        if len(self.speeds) == 1:
            return self.speeds[0]
        return self.speeds[np.random.default_rng((self.seed, epoch, index)).integers(len(self.speeds))]

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
                u.audio,
                self.sample_rate,
                offset=u.offset or 0.0,
                duration=duration,
                downmix=self.downmix,
                keep_nonfinite=self.keep_nonfinite,
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
        [item.place for item in items],
    )
