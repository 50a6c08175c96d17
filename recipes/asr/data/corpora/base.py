"""What every corpus has: a name, options, and a folder that is either complete or not there."""

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import soundfile

from lightning_novograd.errors import ConfigError, DataError, LightningNovoGradError
from lightning_novograd.recipes.asr.data.download.lock import locked
from lightning_novograd.recipes.common.section import Section

STAMP = "corpus.json"


@dataclass(frozen=True)
class Weighted:
    """One of several manifests of a training set, and how often an epoch hears each of its utterances."""

    path: Path
    weight: float = 1.0


@dataclass(frozen=True)
class Manifests:
    """The manifests of a corpus; `test` may be absent from a user's own data."""

    train: Path
    dev: Path
    test: Path | None


class Corpus(ABC):
    """A named source of manifests.

    Attributes:
        name: what configs call it; :func:`register_corpus` sets it.
        options: the class of its options, which stand in the data group beside those of loading.
    """

    name: ClassVar[str]
    options: ClassVar[type[Section]]

    def given(self, options: Any) -> list[Path]:
        """Files that have to be there before anything is made."""
        return []

    @abstractmethod
    def prepare(self, options: Any, cache_dir: Path) -> Manifests:
        """Manifests of the corpus, with all audio in place; it is made if it is not there."""

    def find(self, options: Any, cache_dir: Path) -> Manifests | None:
        """What `prepare` would return without making anything; None where there is something to make."""
        return None

    def training_size(self, options: Any) -> int | None:
        """Utterances of the training set, where the options alone say that."""
        return None

    def training(self, options: Any, manifests: Manifests) -> tuple[Weighted, ...]:
        """Those of the training set, where it has several."""
        return (Weighted(manifests.train),)


class PreparedCorpus(Corpus):
    """A corpus that `prepare.py` can make, in a folder of one's own."""

    @abstractmethod
    def prepare_in(self, options: Any, folder: Path) -> Manifests:
        """Make the corpus in `folder` unless it is there, with all that it takes: downloads too."""

    def more(self, options: Any, folder: Path) -> dict[str, Path]:
        """Further manifests that `prepare_in` made, for `evaluate.py`, by name."""
        return {}

    def how_to_train(self, options: Any, folder: Path, manifests: Manifests) -> str:
        """What to tell `train.py`."""
        given = {split: path for split, path in vars(manifests).items() if path is not None}
        return "data=manifest " + " ".join(f"data.{split}={path}" for split, path in given.items())


class GeneratedCorpus(PreparedCorpus):
    """A corpus that is made, into a folder of its own: subclasses say what of, and how."""

    @abstractmethod
    def fingerprint(self, options: Any) -> dict[str, Any]:
        """Everything that its files depend on, as plain data; another fingerprint is another folder of the cache."""

    @abstractmethod
    def build(self, options: Any, folder: Path) -> None:
        """Write train.json, dev.json and test.json, and the audio that they name, into an empty folder."""

    def prepare(self, options: Any, cache_dir: Path) -> Manifests:
        """Make the corpus in its folder under `cache_dir` unless it is there."""
        return self.prepare_in(options, cache_folder(cache_dir, self.name, self.fingerprint(options)))

    def find(self, options: Any, cache_dir: Path) -> Manifests | None:
        """Those in its folder under `cache_dir`."""
        fingerprint = self.fingerprint(options)
        folder = cache_folder(cache_dir, self.name, fingerprint)
        return _manifests_in(folder) if _holds(folder, json.dumps(fingerprint, sort_keys=True)) else None

    def prepare_in(self, options: Any, folder: Path) -> Manifests:
        """Make it in `folder`, which is complete or not there."""
        return prepare_in(folder, self.fingerprint(options), partial(self.build, options))


CORPORA: dict[str, Corpus] = {}
AnyCorpus = TypeVar("AnyCorpus", bound=Corpus)


def register_corpus(name: str) -> Callable[[type[AnyCorpus]], type[AnyCorpus]]:
    """Make the corpus of the decorated class known to configs as `name`.

    Raises:
        ConfigError: the name is taken.

    Example:
        >>> @register_corpus("silence")  # doctest: +SKIP
        ... class Silence(GeneratedCorpus):
        ...     options = SilenceOptions
    """

    def register(cls: type[AnyCorpus]) -> type[AnyCorpus]:
        if name in CORPORA:
            taken = type(CORPORA[name])
            raise ConfigError("", f"corpus {name!r} is already registered ({taken.__module__}.{taken.__qualname__})")
        cls.name = name
        CORPORA[name] = cls()
        return cls

    return register


def prepare_in(folder: Path, fingerprint: Mapping[str, Any], build: Callable[[Path], None]) -> Manifests:
    """Run `build` for `folder` unless a corpus of the same fingerprint is there.

    The corpus is built in a temporary folder beside `folder` and renamed into place when it is complete, so an
    interrupted run leaves nothing that looks finished. Of several processes one builds it, and the others wait.

    Raises:
        ConfigError: `folder` holds something else.
        DataError: it cannot be made: the disk is full, or somebody else's.
    """
    try:
        return _prepare_in(folder, json.dumps(fingerprint, sort_keys=True), build)
    except (OSError, ValueError, soundfile.SoundFileError) as error:  # ValueError: a zero byte in the name
        if isinstance(error, LightningNovoGradError):
            raise
        raise DataError(
            f"{folder} cannot be made: {error}; choose another folder, such as with data.cache_dir"
        ) from error


def _prepare_in(folder: Path, stamp: str, build: Callable[[Path], None]) -> Manifests:
    if not _holds(folder, stamp):
        folder.parent.mkdir(parents=True, exist_ok=True)
        # one process of a machine works, the others wait: torchrun starts as many as there are GPUs
        with locked(_lock_of(folder)):
            if not _holds(folder, stamp):
                _make(folder, stamp, build)
    return _manifests_in(folder)


def _manifests_in(folder: Path) -> Manifests:
    return Manifests(*(folder / f"{split}.json" for split in ("train", "dev", "test")))


def _lock_of(folder: Path) -> Path:
    """Not beside the folder, where it would stay for ever."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    digest = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"lightning_novograd-{user}-{digest}.lock"


def _make(folder: Path, stamp: str, build: Callable[[Path], None]) -> None:
    # not tempfile's, which nobody else may read: others may read what the umask lets them
    partial = folder.parent / f".{folder.name}-{secrets.token_hex(4)}"
    partial.mkdir()
    try:
        build(partial)
        (partial / STAMP).write_text(stamp + "\n", encoding="utf-8")
        try:
            partial.rename(folder)
        except OSError:
            if not _holds(folder, stamp):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _holds(folder: Path, stamp: str) -> bool:
    """Whether `folder` is the corpus; False if there is nothing."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    file = folder / STAMP
    if not file.is_file() or file.read_text(encoding="utf-8").strip() != stamp:
        raise ConfigError("", f"{folder} exists and is not this corpus; remove it or choose another folder")
    return True


def cache_folder(cache_dir: Path, name: str, fingerprint: Mapping[str, Any]) -> Path:
    """The folder of one corpus: another one for every fingerprint."""
    digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()
    return cache_dir / name / digest[:16]
