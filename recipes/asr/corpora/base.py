"""What every corpus has: typed options, and a folder that is either complete or not there."""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from lightning_novograd.errors import ConfigError, choices

MISSING = "???"  # OmegaConf's mark of a value that the user has to give
STAMP = "corpus.json"

T = TypeVar("T")


@dataclass(frozen=True)
class Manifests:
    """The manifests of a corpus; `test` may be absent from a user's own data."""

    train: Path
    dev: Path
    test: Path | None


class Corpus(Protocol):
    """A named source of manifests.

    `options` is the frozen dataclass of its options. `prepare` makes the corpus, in a folder of its own under
    `cache_dir` if it makes any files, unless it is there already.
    """

    options: type

    def prepare(self, options: Any, cache_dir: Path) -> Manifests:
        """Manifests of the corpus, with all audio in place."""


class GeneratedCorpus(Corpus, Protocol):
    """A corpus that writes its own audio and manifests."""

    def fingerprint(self, options: Any) -> dict[str, Any]:
        """Everything that decides what the corpus holds, as JSON."""

    def build(self, options: Any, folder: Path) -> None:
        """Write train.json, dev.json, test.json and the audio into `folder`."""


def parse_options(cls: type[T], values: Mapping[str, Any], path: str) -> T:
    """An options dataclass from plain values, with unknown keys, missing ones and wrong types refused.

    Raises:
        ConfigError: naming the key's full path.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            raise ConfigError(f"{path}.{key}", f"unknown key{choices(key, fields)}")
    parsed = {}
    for name, field in fields.items():
        value = values.get(name, MISSING)
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if name in values and value != MISSING:
            parsed[name] = _convert(value, hints[name], f"{path}.{name}")
        elif required or name in values:
            raise ConfigError(f"{path}.{name}", f"is required: {field.metadata.get('help', 'it has no default')}")
    return cls(**parsed)


def _convert(value: Any, hint: Any, path: str) -> Any:
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in allowed:
        if kind is type(None) and value is None:
            return None
        if kind is Path and isinstance(value, str | Path) and str(value):
            return Path(value).expanduser()
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if kind in (int, bool, str) and type(value) is kind:
            return value
        if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
            return tuple(_convert(v, typing.get_args(kind)[0], f"{path}[{i}]") for i, v in enumerate(value))
    names = [_KIND_NAMES.get(typing.get_origin(kind) or kind, str(kind)) for kind in allowed]
    raise ConfigError(path, f"must be {' or '.join(names)}, not {value!r}")


_KIND_NAMES = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    Path: "a path",
    tuple: "a list",
    type(None): "null",
}


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
