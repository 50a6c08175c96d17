"""LibriSpeech: 960 hours of read English.

Data: https://www.openslr.org/12, CC BY 4.0; V. Panayotov, G. Chen, D. Povey, S. Khudanpur, ICASSP 2015.
"""

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lightning_novograd.errors import ConfigError, DataError, choices
from lightning_novograd.recipes.asr.data.corpora.base import Manifests, PreparedCorpus, register_corpus
from lightning_novograd.recipes.asr.data.corpora.rows import Recording, join_manifests, write_manifest
from lightning_novograd.recipes.asr.data.download.archive import unpacked
from lightning_novograd.recipes.asr.data.download.http import download
from lightning_novograd.recipes.asr.data.download.lock import locked
from lightning_novograd.recipes.asr.data.download.parallel import run_all
from lightning_novograd.recipes.asr.data.download.source import Source, verify
from lightning_novograd.recipes.common.section import Section, key

AUDIO = "LibriSpeech"  # the folder in the archives
LOCK = ".prepare.lock"


class Part(NamedTuple):
    """A part of the corpus, with size (bytes) and checksum of its archive."""

    utterances: int
    size: int
    sha256: str


# openslr.org publishes md5 sums of the archives; these are the sha256 that torchaudio and TensorFlow Datasets check
PARTS = {
    "train-clean-100": Part(28539, 6387309499, "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2"),
    "train-clean-360": Part(104014, 23049477885, "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf"),
    "train-other-500": Part(148688, 30593501606, "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2"),
    "dev-clean": Part(2703, 337926286, "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3"),
    "dev-other": Part(2864, 314305928, "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365"),
    "test-clean": Part(2620, 346663984, "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23"),
    "test-other": Part(2939, 328757843, "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29"),
}
TRAIN = tuple(name for name in PARTS if name.startswith("train"))


@dataclass(frozen=True, kw_only=True)
class LibriSpeechOptions(Section):
    """Where the corpus is, and which parts of it are which set.

    Args:
        root: for training, the folder that `prepare.py` made, or one with the unpacked parts
            (``LibriSpeech/dev-clean``); for `prepare.py` also one with the archives (``dev-clean.tar.gz``), which are
            then used instead of downloading.
        train: parts to train on, one after the other.
        dev: part that is measured after each epoch.
        test: part that is measured at the end; null for none.
        also: further parts that `prepare.py` makes manifests of.
        mirror: folder of the archives on a server.
        jobs: parts that `prepare.py` downloads and unpacks at once.
    """

    root: str | None = key(None)
    train: Sequence = key(TRAIN)
    dev: str = key("dev-clean", allowed=tuple(PARTS))
    test: str | None = key("test-clean", allowed=(*PARTS, None))
    also: Sequence = key(("dev-other", "test-other"))
    mirror: str = key("https://www.openslr.org/resources/12")
    jobs: int = key(3, low=1, high=16)

    def check(self) -> None:
        """Parts have names, and nothing is trained on and measured at once."""
        for name in ("train", "also"):
            parts = [getattr(self, name)] if isinstance(getattr(self, name), str) else list(getattr(self, name))
            for part in parts:
                if part not in PARTS:
                    raise ConfigError(name, f"there is no part {part!r}{choices(part, PARTS)}")
            if len(set(parts)) < len(parts):
                raise ConfigError(name, f"names a part twice: {', '.join(parts)}")
            object.__setattr__(self, name, tuple(parts))
        if not self.train:
            raise ConfigError("train", f"names no part{choices(None, TRAIN)}")
        for split in ("dev", "test"):
            if getattr(self, split) in self.train:
                raise ConfigError(split, f"{getattr(self, split)} is trained on")

    @property
    def parts(self) -> list[str]:
        """Those of training, of the dev and of the test set, each once."""
        return list(dict.fromkeys([*self.train, self.dev, *([self.test] if self.test else [])]))


@register_corpus("librispeech")
class LibriSpeech(PreparedCorpus):
    """The corpus `librispeech`: too large to be fetched in passing, so training takes it as `prepare.py` left it."""

    options = LibriSpeechOptions

    def prepare(self, options: LibriSpeechOptions, cache_dir: Path) -> Manifests:
        """Manifests of what lies under `root`; those that are missing there are made under `cache_dir`."""
        if not options.root:
            made = "python -m lightning_novograd.recipes.asr.prepare librispeech --out FOLDER (60 GB)"
            raise ConfigError(
                "data.root", f"is missing: give FOLDER of {made}, or one with LibriSpeech's unpacked parts"
            )
        root = Path(os.path.expanduser(options.root))
        if all(os.path.isfile(path) for path in vars(_manifests(root, options)).values() if path is not None):
            return _manifests(root, options)
        folders = {part: find_part(root, part) for part in options.parts}
        absent = [part for part, folder in folders.items() if folder is None]
        if absent:
            raise DataError(f"LibriSpeech in {root} lacks {', '.join(absent)} (looked for {root / AUDIO / absent[0]})")
        store = self._store(root, cache_dir)
        for part, folder in folders.items():
            if folder is not None:
                _write_part(store, part, folder)
        return _join(store, options)

    def find(self, options: LibriSpeechOptions, cache_dir: Path) -> Manifests | None:
        """Those that `prepare.py` or an earlier training has written."""
        if not options.root:
            return None
        root = Path(os.path.expanduser(options.root))
        found = (_manifests(folder, options) for folder in (root, self._store(root, cache_dir)))
        return next((manifests for manifests in found if manifests.train.is_file()), None)

    def training_size(self, options: LibriSpeechOptions) -> int:
        """As many as its parts have."""
        return sum(PARTS[part].utterances for part in options.train)

    def _store(self, root: Path, cache_dir: Path) -> Path:
        """Where manifests go of parts in a folder that is not ours."""
        return cache_dir / self.name / hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]

    def prepare_in(self, options: LibriSpeechOptions, folder: Path) -> Manifests:
        """Download, check, unpack and list what is missing: several parts at once, each whole or not there."""

        def make(part: str, stop: threading.Event) -> None:
            audio = find_part(folder, part) or (find_part(root, part) if root else None)
            _write_part(folder, part, audio or _obtain(part, options, folder, stop))

        root = Path(os.path.expanduser(options.root)) if options.root else None
        parts = list(dict.fromkeys([*options.parts, *options.also]))
        if root:
            for part in parts:
                if not any((find_part(folder, part), find_part(root, part), os.path.isfile(_archive(root, part)))):
                    raise DataError(
                        f"there is neither {part}.tar.gz nor {AUDIO}/{part} in {root}; leave root out to download"
                    )
        with locked(folder / LOCK):
            absent = [part for part in parts if not (find_part(folder, part) or (root and find_part(root, part)))]
            check_room(folder, absent, jobs=0 if root else options.jobs)
            run_all(make, parts, options.jobs)
            return _join(folder, options)

    def more(self, options: LibriSpeechOptions, folder: Path) -> dict[str, Path]:
        """The parts that belong to no set."""
        return {part: folder / f"{part}.json" for part in options.also if part not in options.parts}

    def how_to_train(self, options: LibriSpeechOptions, folder: Path, manifests: Manifests) -> str:
        """The folder is all that is needed."""
        usual = LibriSpeechOptions()
        other = [f"data.{split}={getattr(options, split)}" for split in ("dev", "test")
                 if getattr(options, split) != getattr(usual, split)]  # fmt: skip
        train = [] if options.train == usual.train else [f"'data.train=[{','.join(options.train)}]'"]
        return " ".join(["data=librispeech", f"data.root={folder}", *train, *other])


def find_part(root: Path, part: str) -> Path | None:
    """The unpacked folder of a part, if it is there."""
    return next((folder for folder in (root / AUDIO / part, root / part) if os.path.isdir(folder)), None)


def read_part(part: str, folder: Path) -> list[Recording]:
    """The recordings of an unpacked part: texts in lower case, as NeMo's.

    Raises:
        DataError: a transcript is malformed, or the part has not as many utterances as it should.
    """
    recordings = [recording for file in sorted(folder.glob("*/*/*.trans.txt")) for recording in _read_transcript(file)]
    if len(recordings) != PARTS[part].utterances:
        raise DataError(
            f"{folder} has {len(recordings)} of {PARTS[part].utterances} utterances: unpack {part}.tar.gz again"
        )
    return recordings


def check_room(folder: Path, parts: Sequence[str], jobs: int) -> None:
    """Whether the disk has room for these parts, and for `jobs` of their archives beside them.

    Raises:
        DataError: it has not.
    """
    sizes = sorted(
        (PARTS[part].size for part in parts), reverse=True
    )  # of FLAC, archives are as large as what they hold
    there = sum(file.stat().st_size for part in parts for file in folder.glob(f"{part}.tar.gz*"))
    needed = sum(sizes) + max(0, sum(sizes[:jobs]) - there)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(f"{folder} has {free / 1e9:.1f} GB free, but LibriSpeech needs {needed / 1e9:.1f} GB more")


def _read_transcript(file: Path) -> Iterator[Recording]:
    """Of a chapter: lines such as ``84-121123-0000 GO DO YOU HEAR``."""
    speaker, chapter = file.parts[-3:-1]
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        name, _, text = line.strip().partition(" ")
        if not name.startswith(f"{speaker}-{chapter}-") or not text or "/" in name:
            raise DataError(f"{file}:{number}: is no line of the chapter's transcript: {line[:60]!r}")
        yield Recording(file.parent / f"{name}.flac", text.lower(), speaker)


def _archive(folder: Path, part: str) -> Path:
    return folder / f"{part}.tar.gz"


def _obtain(part: str, options: LibriSpeechOptions, folder: Path, stop: threading.Event) -> Path:
    """Unpack a part from a local archive, or from one that is downloaded and not kept."""
    source = Source(f"{options.mirror.rstrip('/')}/{part}.tar.gz", PARTS[part].sha256, PARTS[part].size)
    if options.root:
        archive = _archive(Path(os.path.expanduser(options.root)), part)
        verify(archive, source, stop)
    else:
        archive = download(source, _archive(folder, part), stop)
    with unpacked(archive, folder, stop) as content:
        found = content / AUDIO / part
        read_part(part, found)
        (folder / AUDIO).mkdir(exist_ok=True)
        for file in (content / AUDIO).glob("*.TXT"):  # licence, speakers, chapters
            file.replace(folder / AUDIO / file.name)
        found.rename(folder / AUDIO / part)
    if not options.root:
        archive.unlink()
    return folder / AUDIO / part


def _write_part(store: Path, part: str, folder: Path) -> None:
    """The manifest of one part, unless it is there."""
    if not (store / f"{part}.json").is_file():
        write_manifest(store / f"{part}.json", read_part(part, folder), inside=store)


def _manifests(store: Path, options: LibriSpeechOptions) -> Manifests:
    """Where the manifests are, or will be: named by their parts, so that one folder serves all choices of parts."""
    train = "+".join([options.train[0], *(part.removeprefix("train-") for part in options.train[1:])])
    test = store / f"{options.test}.json" if options.test else None
    return Manifests(store / f"{train}.json", store / f"{options.dev}.json", test)


def _join(store: Path, options: LibriSpeechOptions) -> Manifests:
    """The manifest of the training set, from those of its parts, unless it is there."""
    manifests = _manifests(store, options)
    if not manifests.train.is_file():
        join_manifests(manifests.train, [store / f"{part}.json" for part in options.train])
    return manifests
