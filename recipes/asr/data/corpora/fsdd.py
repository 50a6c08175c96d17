"""Connected digits from the Free Spoken Digit Dataset: real speech, several digits in a row.

An utterance is 3 to 7 recordings of one speaker with gaps of 50 to 200 ms before, between and after them. Gaps hold
low white noise or digital silence. The manifest entry defines the utterance (recordings, gaps, noise level, seed), so
the audio can be rebuilt from it sample by sample. Choices come from `random.Random.random` and noise from numpy's
frozen `RandomState`, whose streams do not change between versions, each seeded by the sha256 of a name.

Recordings 0 to 4 of each speaker and digit are the dataset's official test set. Here `train` has recordings 5 to 49
of five speakers, `dev` their recordings 0 to 4, and `test` everything of the sixth, who is never heard in training.

Data: https://github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0.
"""

import hashlib
import json
import math
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.data.corpora.base import GeneratedCorpus, register_corpus
from lightning_novograd.recipes.asr.data.corpora.rng import randint, seed_of, shuffled
from lightning_novograd.recipes.asr.data.manifest import parse_row, read_rows
from lightning_novograd.recipes.common.data.workers import workers
from lightning_novograd.recipes.common.section import Section, key

DATASET = "https://github.com/Jakobovski/free-spoken-digit-dataset"
VERSION = 1  # of the audio; a change of it makes new caches
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SOURCE_RATE, SAMPLE_RATE = 8000, 16000
SEEN = ("george", "jackson", "lucas", "nicolas", "yweweler")
UNSEEN = ("theo",)
OFFICIAL_TEST = range(5)
RECORDINGS_PER_DIGIT = 50
DIGITS, GAP_MS = (3, 7), (50, 200)
NOISE_DB, SILENT_SHARE = (-60.0, -40.0), 0.25  # relative to the RMS of the utterance's speech
FILTER_HALF = 32  # taps on each side of the interpolation filter, at the source rate
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True, kw_only=True)
class FsddOptions(Section):
    """Where the recordings are, and how many utterances to make of them.

    Args:
        root: a clone of the dataset (it has `recordings/`), or a folder with `fsdd/recordings/`; manifests in
            `connected_digits/` beside it, if there are any, are used as they are.
        seed: of the choices.
        train_size: utterances of the training set.
        dev_size: of the development set.
        test_size: of the test set.
    """

    root: str | None = key(None)
    seed: int = key(2020)
    train_size: int = key(2000, low=1)
    dev_size: int = key(200, low=1)
    test_size: int = key(200, low=1)

    def check(self) -> None:
        """The recordings cannot be had from anywhere else."""
        if not self.root:
            raise ConfigError("root", f"is missing: give a clone of {DATASET}")

    @property
    def folder(self) -> Path:
        """`root` as a path."""
        return Path(os.path.expanduser(self.root or ""))


@register_corpus("fsdd")
class Fsdd(GeneratedCorpus):
    """The corpus `fsdd`."""

    options = FsddOptions

    def fingerprint(self, options: FsddOptions) -> dict[str, Any]:
        """Options, and the names and sizes of the recordings."""
        files = [f"{path.name} {path.stat().st_size}" for path in find_recordings(options.folder).values()]
        manifests = [path.read_text(encoding="utf-8") for path in _given_manifests(options).values()]
        source = hashlib.sha256("\n".join(files + manifests).encode()).hexdigest()
        return {"corpus": "fsdd", "version": VERSION, "source": source, **asdict(options), "root": None}

    def training_size(self, options: FsddOptions) -> int:
        """As many as are made."""
        return options.train_size

    def build(self, options: FsddOptions, folder: Path) -> None:
        """Write manifests and 16 kHz FLAC files."""
        recordings = Recordings(options.folder)
        given = _given_manifests(options)
        for split in SPLITS:
            if split in given:
                entries = [parse_row(row) for _, row in read_rows(given[split])]
            else:
                entries = list(make_entries(split, recordings, options.seed, getattr(options, f"{split}_size")))
            (folder / "audio" / split).mkdir(parents=True)
            with ThreadPoolExecutor(workers()) as pool:  # numpy and libsndfile let other threads run
                list(pool.map(partial(_write_audio, folder, recordings), entries))
            rows = "".join(json.dumps(entry) + "\n" for entry in entries)
            (folder / f"{split}.json").write_text(rows, encoding="utf-8")


def _given_manifests(options: FsddOptions) -> dict[str, Path]:
    """Manifests beside the recordings that stand for what these options would generate."""
    if options != FsddOptions(root=options.root):
        return {}
    paths = {split: options.folder / "connected_digits" / f"{split}.json" for split in SPLITS}
    return paths if all(path.is_file() for path in paths.values()) else {}


def find_recordings(root: Path) -> dict[str, Path]:
    """Recordings by name (``"7_theo_12"``), sorted.

    Raises:
        DataError: there is no folder of recordings, or one that is needed is missing from it.
    """
    candidates = [root / "fsdd" / "recordings", root / "recordings", root]
    for folder in candidates:
        files = [path for path in folder.glob("*_*_*.*") if path.suffix in (".wav", ".flac")]
        if files:
            break
    else:
        raise DataError(
            f"no recordings of the Free Spoken Digit Dataset in {root} (looked for fsdd/recordings and recordings "
            "with files such as 7_theo_12.wav); "
            f"git clone {DATASET} and give its folder as root"
        )
    found = {path.stem: path for path in sorted(files, key=lambda path: path.stem)}
    for speaker in SEEN + UNSEEN:
        names = [f"{digit}_{speaker}_{index}" for digit in range(10) for index in range(RECORDINGS_PER_DIGIT)]
        absent = [name for name in names if name not in found]
        if absent:
            raise DataError(f"{folder} lacks {len(absent)} recordings of {speaker}, such as {absent[0]}")
    return found


class Recordings:
    """The recordings as float64 samples on the int16 scale, each read once.

    Raises:
        DataError: a recording is not mono at 8 kHz, or cannot be read.
    """

    def __init__(self, root: Path) -> None:
        self.paths = find_recordings(root)
        self._samples: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._samples:
            if name not in self.paths:
                raise DataError(f"there is no recording {name} among those of the Free Spoken Digit Dataset")
            path = self.paths[name]
            try:
                pcm, rate = soundfile.read(str(path), dtype="int16")
            except soundfile.LibsndfileError as error:
                raise DataError(f"recording {path} cannot be read: {error.error_string}") from error
            if rate != SOURCE_RATE or pcm.ndim != 1:
                channels = 1 if pcm.ndim == 1 else pcm.shape[1]
                raise DataError(
                    f"recording {path} must be mono at {SOURCE_RATE} Hz, but has {channels} channels at {rate} Hz"
                )
            self._samples[name] = pcm.astype(np.float64)
        return self._samples[name]


def make_entries(split: str, recordings: Recordings, seed: int, count: int) -> Iterator[dict[str, Any]]:
    """Manifest entries of a split; the first `n` are the same for every `count`."""
    speakers = UNSEEN if split == "test" else SEEN
    decks = {speaker: _Deck(split, speaker, recordings.paths, seed) for speaker in speakers}
    for i in range(count):
        speaker = speakers[i % len(speakers)]
        utterance_seed = seed_of(seed, split, i)
        rng = random.Random(utterance_seed)
        names = [decks[speaker].draw() for _ in range(randint(rng, *DIGITS))]
        gaps_ms = [randint(rng, *GAP_MS) for _ in range(len(names) + 1)]
        silent = rng.random() < SILENT_SHARE
        noise_db = round(NOISE_DB[0] + rng.random() * (NOISE_DB[1] - NOISE_DB[0]), 1)
        samples = sum(len(recordings[name]) for name in names) + sum(map(_gap_samples, gaps_ms))
        yield {
            "audio_filepath": f"audio/{split}/{split}_{i:05d}.flac",
            "duration": round(samples / SOURCE_RATE, 6),
            "text": " ".join(WORDS[int(name[0])] for name in names),
            "speaker": speaker,
            "recordings": names,
            "gaps_ms": gaps_ms,
            "gap_noise_db": None if silent else noise_db,
            "seed": utterance_seed,
        }


class _Deck:
    """A speaker's recordings in random order, shuffled anew when all have been drawn."""

    def __init__(self, split: str, speaker: str, names: Sequence[str] | dict[str, Path], seed: int) -> None:
        def belongs(name: str) -> bool:
            _, who, index = name.split("_")
            return who == speaker and (split == "test" or (int(index) in OFFICIAL_TEST) == (split == "dev"))

        self._all = [name for name in names if belongs(name)]
        self._rng = random.Random(seed_of(seed, split, speaker))
        self._left: list[str] = []

    def draw(self) -> str:
        if not self._left:
            self._left = shuffled(self._rng, self._all)
        return self._left.pop()


def _gap_samples(ms: int) -> int:
    return ms * SOURCE_RATE // 1000


def build_audio(entry: dict[str, Any], recordings: Recordings) -> np.ndarray:
    """int16 samples at 16 kHz of a manifest entry."""
    spoken = [recordings[name] for name in entry["recordings"]]
    speech_rms = math.sqrt(np.mean(np.concatenate(spoken) ** 2))
    level = 0.0 if entry["gap_noise_db"] is None else speech_rms * 10.0 ** (entry["gap_noise_db"] / 20)
    noise = np.random.RandomState(entry["seed"])
    gaps = [noise.standard_normal(_gap_samples(ms)) * level for ms in entry["gaps_ms"]]
    pieces = [gaps[0]]
    for recording, gap in zip(spoken, gaps[1:], strict=True):
        pieces += [recording, gap]
    wave = _double_rate(np.concatenate(pieces))
    return np.clip(np.rint(wave), -32768, 32767).astype(np.int16)


def _double_rate(x: np.ndarray) -> np.ndarray:
    """Band-limited interpolation by two: even samples are the input, odd ones a windowed sinc of it."""
    offsets = np.arange(-FILTER_HALF, FILTER_HALF) + 0.5
    taps = np.sinc(offsets) * np.kaiser(2 * FILTER_HALF + 1, 9.0)[:-1]
    taps /= taps.sum()
    doubled = np.empty(2 * len(x))
    doubled[0::2] = x
    doubled[1::2] = np.convolve(np.pad(x, (FILTER_HALF - 1, FILTER_HALF)), taps, mode="valid")[: len(x)]
    return doubled


def _write_audio(folder: Path, recordings: Recordings, entry: dict[str, Any]) -> None:
    path = folder / entry["audio_filepath"]
    soundfile.write(str(path), build_audio(entry, recordings), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
