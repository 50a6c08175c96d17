"""One process at a time in a folder."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from lightning_novograd.errors import DataError

log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the lock `file`, waiting for a process that has it.

    Not the lock of a run folder, which never waits, names its owner, and is kept for the whole life of a process.

    Raises:
        DataError: there can be no such file.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for another process that prepares %s", file.parent)
            lock.acquire()
    except OSError as error:
        raise DataError(f"{file} cannot be made: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()
