"""What every corpus has: options, and a folder that is either complete or not there."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.section import Section

STAMP = "corpus.json"


@dataclass(frozen=True)
class Manifests:
    """The manifests of a corpus; `test` may be absent from a user's own data."""

    train: Path
    dev: Path
    test: Path | None


class Corpus(Protocol):
    """A named source of manifests.

    `options` is the class of its options. `prepare` makes the corpus, in a folder of its own under
    `cache_dir` if it makes any files, unless it is there already.
    """

    @property
    def options(self) -> type[Section]:
        """The class of its options."""

    def prepare(self, options: Any, cache_dir: Path) -> Manifests:
        """Manifests of the corpus, with all audio in place."""


def prepare_in(folder: Path, fingerprint: Mapping[str, Any], build: Callable[[Path], None]) -> Manifests:
    """Run `build` for `folder` unless a corpus of the same fingerprint is there.

    The corpus is built in a temporary folder beside `folder` and renamed into place when it is complete, so an
    interrupted run leaves nothing that looks finished, and of several runs at the same time one wins and the others
    use its result.

    Raises:
        ConfigError: `folder` holds something else.
    """
    stamp = json.dumps(fingerprint, sort_keys=True)
    if not _holds(folder, stamp):
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            build(partial)
            (partial / STAMP).write_text(stamp + "\n", encoding="utf-8")
            partial.chmod(0o755)
            try:
                partial.rename(folder)
            except OSError:
                if not _holds(folder, stamp):
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return Manifests(*(folder / f"{split}.json" for split in ("train", "dev", "test")))


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


def workers(requested: int | None = None) -> int:
    """Processes or threads to prepare with: what the machine lets this process use."""
    return requested or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))
