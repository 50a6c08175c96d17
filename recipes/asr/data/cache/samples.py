"""Decoded samples of a whole set in one file, which all processes of a machine map into memory."""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lightning_novograd.errors import printable
from lightning_novograd.log import rank_zero_logger
from lightning_novograd.recipes.asr.data.cache.files import whole_file

log = rank_zero_logger(__name__)

VERSION = 2  # of the samples: of how they are resampled and rounded
UNUSED = 30 * 86400.0  # s without a use after which a set makes room for a new one
AT_ONCE = 256  # recordings decoded before they are written


class Samples(NamedTuple):
    """Recordings one after the other, as int16 samples; `ends` counts samples, shape (recordings,)."""

    ends: np.ndarray
    samples: np.ndarray


class SampleFile:
    """Where the samples of a set are kept.

    Args:
        path: the file. A set of the same name that has changed takes its place.
        content: all that the samples depend on, as plain data; a file of other content is not used.
        writable: whether this process makes the file if it is not there.
    """

    def __init__(self, path: Path, content: Any, *, writable: bool = False) -> None:
        self.path, self.writable = path, writable
        document = json.dumps([VERSION, content])
        self.key = np.frombuffer(hashlib.sha256(document.encode("utf-8", "backslashreplace")).digest(), np.uint8)

    def read(self) -> Samples | None:
        """Map the file; None if there is none of this content."""
        try:
            with open(self.path, "rb") as file:
                key, ends = (np.lib.format.read_array(file, allow_pickle=False) for _ in range(2))
                first = file.tell()
            if not np.array_equal(key, self.key) or os.path.getsize(self.path) != first + 2 * int(ends[-1]):
                return None
            with contextlib.suppress(OSError):  # somebody else's
                os.utime(self.path)  # it is in use
            # copied where it is written to, which nobody does: torch wants memory that could be
            return Samples(ends, np.memmap(self.path, np.int16, "c", first, (int(ends[-1]),)))
        except (OSError, ValueError, EOFError, IndexError):
            return None

    def write(self, load: Callable[[int], np.ndarray], count: int) -> None:
        """Make the file.

        Args:
            load: int16 samples of a recording, by its number.
            count: how many recordings there are.

        Raises:
            DataError: of `load`.
            OSError: the disk is full or the folder cannot be written; nothing is left behind.
        """
        ends = np.zeros(count, dtype=np.int64)
        with whole_file(self.path) as file:
            for array in (self.key, ends):
                np.lib.format.write_array(file, array, allow_pickle=False)
            for index, wave in enumerate(decoded(load, count)):
                ends[index] = ends[index - 1] + len(wave)
                file.write(wave.tobytes())
            file.seek(0)
            for array in (self.key, ends):
                np.lib.format.write_array(file, array, allow_pickle=False)

    def ensure(self, load: Callable[[int], np.ndarray], count: int, size: int) -> Samples | None:
        """Map the file; make it before if need be and allowed. None where that is not possible, which the log says.

        Args:
            load: as for `write`.
            count: as for `write`.
            size: about how many samples there will be.
        """
        if (found := self.read()) is not None or not self.writable:
            return found
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.path.parent).free
            if free < 2 * size:
                raise OSError(f"{2 * size / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free")
            self.write(load, count)
            _make_room(self.path.parent)
        except OSError as error:
            reason = printable(error)
            log.warning("decoded audio is kept in the memory of each process: %s: %s", printable(self.path), reason)
        return self.read()


def _make_room(folder: Path) -> None:
    """Remove sets that were not used for long: those of settings, or of a manifest, that are no more.

    A process that has mapped one keeps it until it ends.
    """
    removed, size = 0, 0
    for path in folder.glob("*.samples"):
        with contextlib.suppress(OSError):
            status = path.stat()
            if time.time() - status.st_mtime > UNUSED:
                path.unlink()
                removed, size = removed + 1, size + status.st_size
    if removed:
        said = f"{removed} file{'s' * (removed > 1)}, {size / 1e9:.1f} GB"
        days = round(UNUSED / 86400)
        log.info("%s: decoded audio that was not used for %d days is removed: %s", printable(folder), days, said)


def decoded(load: Callable[[int], np.ndarray], count: int) -> Iterable[np.ndarray]:
    """Recordings in order, decoded by several threads: libsndfile lets other threads run."""
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for first in range(0, count, AT_ONCE):
            yield from pool.map(load, range(first, min(first + AT_ONCE, count)))
