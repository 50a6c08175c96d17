"""Headers of recordings, remembered from run to run."""

import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np

from lightning_novograd.recipes.asr.data.audio import Header, read_header
from lightning_novograd.recipes.asr.data.cache.files import whole_file

VERSION = 1
Stamp = tuple[int, int]  # size in bytes and time of the last change in ns


class Headers:
    """The headers of the recordings of a manifest: each file is opened once, and again when it has changed.

    They are kept beside the manifest or, where that folder cannot be written, in a cache folder.

    Args:
        manifest: whose recordings they are; what is known of these is read at once.
        cache_dir: the other folder; None for none.
        trusted: ask no file whether it has changed: another process has just done so.
    """

    def __init__(self, manifest: Path, cache_dir: Path | None = None, *, trusted: bool = False) -> None:
        self.trusted = trusted
        self._folder = f"{manifest.parent}{os.sep}"
        self._places = [manifest.with_name(f".{manifest.name}.headers.npz")]
        if cache_dir is not None:
            digest = hashlib.sha256(os.fsencode(os.path.abspath(manifest))).hexdigest()
            self._places.append(cache_dir / "headers" / f"{digest[:16]}.npz")
        self._known: dict[str, tuple[Stamp, Header]] = {}
        for place in sorted(filter(os.path.isfile, self._places), key=os.path.getmtime):
            self._known.update(_load(place))  # what was found last counts
        self._used: dict[str, tuple[Stamp, Header]] = {}
        self._changed = False

    def __call__(self, audio: Path) -> Header:
        """The header of a recording.

        Raises:
            DataError: there is no such file, or no audio in it; that is not remembered.
        """
        name = str(audio).removeprefix(self._folder)
        known = self._known.get(name)
        if known is None or not self.trusted:
            stamp = _stamp(audio)
            if known is None or known[0] != stamp:
                self._changed |= known is not None  # forgotten, if there is no header now
                known = stamp, read_header(audio)
                self._changed = True
        self._used[name] = known
        return known[1]

    def stamp(self, audio: Path) -> Stamp:
        """Size and time of the last change of a recording whose header has been asked for."""
        return self._used[str(audio).removeprefix(self._folder)][0]

    def save(self) -> Path | None:
        """Keep what has been asked for; the file, or None where it can be written nowhere or says so already."""
        if not self._changed:
            return None
        names = "\0".join(self._used).encode("utf-8", "surrogateescape")
        numbers = [(*stamp, *header) for stamp, header in self._used.values()]
        for place in self._places:
            try:
                with whole_file(place) as file:
                    np.savez(
                        file,
                        version=np.int64(VERSION),
                        names=np.frombuffer(names, dtype=np.uint8),
                        numbers=np.array(numbers, dtype=np.int64),
                    )
            except OSError:
                continue
            self._changed = False
            return place
        return None


def _stamp(audio: Path) -> Stamp:
    try:
        status = os.stat(audio)
    except (OSError, ValueError):  # read_header says what is wrong
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _load(place: Path) -> dict[str, tuple[Stamp, Header]]:
    """What a file says; nothing if there is none, or none of ours."""
    try:
        with np.load(place, allow_pickle=False) as arrays:
            if int(arrays["version"]) != VERSION:
                return {}
            names = arrays["names"].tobytes().decode("utf-8", "surrogateescape").split("\0")
            numbers = arrays["numbers"].tolist()
        return {
            name: ((size, changed), Header(*header))
            for name, (size, changed, *header) in zip(names, numbers, strict=True)
        }
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return {}
