"""Utterances to padded batches."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.data.audio import load_audio
from lightning_novograd.recipes.asr.data.augment import Augment
from lightning_novograd.recipes.asr.data.cache.samples import SampleFile, decoded
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

    `wave_BS` is float32, `targets_BU` holds class ids; both `lens` are int64 and count samples and characters. `weight`
    times the mean loss of the batch, averaged over the micro-batches of a step on all ranks, is the loss of the step.
    `places` are the utterances' ``manifest:line``, for messages.
    """

    wave_BS: Tensor
    wave_lens_B: Tensor
    targets_BU: Tensor
    target_lens_B: Tensor
    texts: list[str]
    weight: float = 1.0
    places: Sequence[str] = ()


class SpeechDataset(Dataset[Item]):
    """The utterances of a manifest, looked up by ``(epoch, entry)``.

    Entry `i` of `n` utterances is the `i`-th; entry ``n + i`` is the same one, heard once more in the epoch and
    augmented in another way.

    Args:
        utterances: as `read_manifest` gives them.
        alphabet: characters to class ids.
        sample_rate: Hz.
        downmix: average several channels.
        cache: decode everything now and keep it as 16-bit samples in shared memory (2 bytes per sample: 115 MB per
            hour at 16 kHz). Without it files are decoded when they are needed.
        cache_file: where these are kept from run to run, and shared by all processes of a machine; None: nowhere.
        augment: changes the waveforms; None leaves them as they are.
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
        cache_file: SampleFile | None = None,
        augment: Augment | None = None,
        keep_nonfinite: bool = False,
    ) -> None:
        self.utterances = list(utterances)
        self.alphabet, self.sample_rate, self.downmix = alphabet, sample_rate, downmix
        self.augment = augment
        self.keep_nonfinite = keep_nonfinite and not cache  # 16 bits have no NaN
        self._samples: Tensor | None = None
        self._file = cache_file
        if cache and not self._map_samples():
            waves = list(decoded(self._load_int16, len(self)))
            self._ends = np.cumsum([len(wave) for wave in waves])
            self._samples = torch.from_numpy(np.concatenate(waves)).share_memory_()

    def __len__(self) -> int:
        return len(self.utterances)

    def _map_samples(self) -> bool:
        """Take the samples from the cache's file, if there is one or may be."""
        if self._file is None:
            return False
        size = round(sum(self.durations) * self.sample_rate)
        found = self._file.ensure(self._load_int16, len(self), size)
        if found is not None:
            self._ends, self._samples = found.ends, torch.from_numpy(found.samples)
        return found is not None

    def __getstate__(self) -> dict[str, Any]:
        """Without a mapped file's samples, which worker processes that are not forked map themselves."""
        mapped = self._samples is not None and not self._samples.is_shared()
        return {**self.__dict__, "_samples": None, "_mapped": True} if mapped else self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        mapped = state.pop("_mapped", False)
        self.__dict__.update(state)
        if mapped:
            self._map_samples()

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, entry = key
        index = entry % len(self)
        wave, text = self._wave(index), self.utterances[index].text
        if self.augment is not None:
            wave = self.augment(wave, epoch, entry)
        return Item(wave, self.alphabet.encode(text), text, self.utterances[index].where)

    @property
    def durations(self) -> list[float]:
        """s, of all utterances."""
        return [u.duration for u in self.utterances]

    @property
    def target_lens(self) -> list[int]:
        """Characters of all utterances, a class id each."""
        return [len(u.text) for u in self.utterances]

    def lengths(self, epoch: int, entries: np.ndarray) -> np.ndarray:
        """s, of entries as they are heard in an epoch, shape (N,)."""
        durations = np.asarray(self.durations)[entries % len(self)]
        if self.augment is None or self.augment.speed_config is None:
            return durations
        return durations / np.array([self.augment.speed(epoch, entry) for entry in entries.tolist()])

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
        places=[item.place for item in items],
    )
