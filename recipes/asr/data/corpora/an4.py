"""AN4: 50 minutes of spelled words, names, addresses and numbers, recorded at Carnegie Mellon University in 1991.

The archive has no development set. Here whole speakers of the training set are one, so that nobody is heard in both.
Its recordings are NIST SPHERE files of plain samples, which libsndfile reads; they become FLAC, sample by sample. The
archives of headerless `.raw` files say neither rate nor byte order and are not read.

Data: http://www.speech.cs.cmu.edu/databases/an4. No checksum of the archive has been published; give one as `sha256`.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import soundfile

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.data.corpora.base import GeneratedCorpus, Manifests, register_corpus
from lightning_novograd.recipes.asr.data.corpora.rng import seed_of, shuffled
from lightning_novograd.recipes.asr.data.corpora.rows import Recording, write_manifest
from lightning_novograd.recipes.asr.data.download.archive import unpacked
from lightning_novograd.recipes.asr.data.download.http import download
from lightning_novograd.recipes.asr.data.download.lock import locked
from lightning_novograd.recipes.asr.data.download.source import Source, verify
from lightning_novograd.recipes.common.data.workers import workers
from lightning_novograd.recipes.common.section import Section, key

VERSION = 1  # of the audio and the sets; a change of it makes new caches
URL = "https://dldata-public.s3.us-east-2.amazonaws.com/an4_sphere.tar.gz"  # NVIDIA's copy: CMU's has no https
UTTERANCES = {"train": 948, "test": 130}
FOLDERS = {"train": "an4_clstk", "test": "an4test_clstk"}
LINE = re.compile(r"(?:<s> )?(?P<text>.+?)(?: </s>)? \((?P<name>[\w-]+)\)")


@dataclass(frozen=True, kw_only=True)
class An4Options(Section):
    """Where the corpus comes from.

    Args:
        root: instead of downloading, ``an4_sphere.tar.gz``, the folder that it is in, or the unpacked `an4`.
        url: of the archive.
        sha256: of the archive; null: not checked, beyond the archive's own checksum and the number of utterances.
        dev_size: utterances of the development set, at least: whole speakers are taken out of the training set.
    """

    root: str | None = key(None)
    url: str = key(URL)
    sha256: str | None = key(None)
    dev_size: int = key(100, low=1, high=800)


@register_corpus("an4")
class An4(GeneratedCorpus):
    """The corpus `an4`."""

    options = An4Options

    def fingerprint(self, options: An4Options) -> dict[str, Any]:
        """The same wherever the recordings came from."""
        return {"corpus": self.name, "version": VERSION, "dev_size": options.dev_size}

    def prepare_in(self, options: An4Options, folder: Path) -> Manifests:
        """One process at a time: they would fetch the same archive to the same place."""
        if (folder / "train.json").is_file():
            return super().prepare_in(options, folder)
        with locked(folder.parent / f".{folder.name}.lock"):
            return super().prepare_in(options, folder)

    def build(self, options: An4Options, folder: Path) -> None:
        """Write FLAC files and the three manifests."""
        with source_folder(options, folder.parent) as source:
            sets = {split: read_transcription(source, split) for split in UTTERANCES}
            for recordings in sets.values():
                (folder / "audio").mkdir(exist_ok=True)
                with ThreadPoolExecutor(workers()) as pool:
                    list(pool.map(partial(_convert, folder / "audio"), recordings))
        dev = choose_speakers(sets["train"], options.dev_size)
        splits = {
            "train": [recording for recording in sets["train"] if recording.speaker not in dev],
            "dev": [recording for recording in sets["train"] if recording.speaker in dev],
            "test": sets["test"],
        }
        for split, recordings in splits.items():
            moved = [recording._replace(audio=_flac(folder / "audio", recording)) for recording in recordings]
            write_manifest(folder / f"{split}.json", moved, inside=folder)


@contextlib.contextmanager
def source_folder(options: An4Options, beside: Path) -> Iterator[Path]:
    """The unpacked corpus, for as long as the block takes.

    Raises:
        DataError: it is not where it should be, or cannot be had.
    """
    source = Source(options.url, options.sha256)
    if options.root is None:
        archive = download(source, beside / f".{source.name}")
    else:
        root = Path(os.path.expanduser(options.root))
        unpacked_roots = [folder for folder in (root / "an4", root) if os.path.isdir(folder / "etc")]
        if unpacked_roots:
            yield unpacked_roots[0]
            return
        archive = root if os.path.isfile(root) else root / "an4_sphere.tar.gz"
        if not os.path.isfile(archive):
            raise DataError(f"there is neither an4_sphere.tar.gz nor an4/etc in {root}; leave root out to download")
        verify(archive, source)
    with unpacked(archive, beside) as content:
        yield content / "an4"
    if options.root is None:
        archive.unlink()


def read_transcription(source: Path, split: str) -> list[Recording]:
    """The recordings of `train` or `test`, texts in lower case.

    Raises:
        DataError: the transcription is missing or malformed, or has not as many lines as it should.
    """
    file = source / "etc" / f"an4_{split}.transcription"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    recordings = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        match = LINE.fullmatch(line.strip())
        parts = match["name"].split("-") if match else []
        if match is None or len(parts) != 3:
            raise DataError(f"{file}:{number}: is no line such as 'HELLO (an1-abcd-b)': {line[:60]!r}")
        audio = source / "wav" / FOLDERS[split] / parts[1] / f"{match['name']}.sph"
        recordings.append(Recording(audio, match["text"].lower(), parts[1]))
    if len(recordings) != UTTERANCES[split]:
        raise DataError(f"{file} has {len(recordings)} of {UTTERANCES[split]} utterances")
    return recordings


def choose_speakers(recordings: Sequence[Recording], size: int) -> set[str]:
    """Speakers who together have at least `size` of the recordings; the same ones each time."""
    chosen: set[str] = set()
    for speaker in shuffled(Random(seed_of("an4", "dev")), sorted({recording.speaker for recording in recordings})):
        if sum(recording.speaker in chosen for recording in recordings) >= size:
            break
        chosen.add(speaker)
    return chosen


def _flac(folder: Path, recording: Recording) -> Path:
    return folder / f"{recording.audio.stem}.flac"


def _convert(folder: Path, recording: Recording) -> None:
    """A SPHERE file to FLAC, sample by sample."""
    if not recording.audio.is_file():
        hint = "; the archive of .raw files has no headers" if recording.audio.with_suffix(".raw").is_file() else ""
        raise DataError(f"recording {recording.audio} is missing: an4_sphere.tar.gz has it{hint}")
    try:
        pcm, rate = soundfile.read(str(recording.audio), dtype="int16")
    except soundfile.LibsndfileError as error:
        raise DataError(f"recording {recording.audio} cannot be read: {error.error_string}") from error
    if pcm.ndim != 1 or len(pcm) == 0:
        raise DataError(f"recording {recording.audio} must be mono and not empty, but has the shape {pcm.shape}")
    soundfile.write(str(_flac(folder, recording)), pcm, rate, format="FLAC", subtype="PCM_16")
