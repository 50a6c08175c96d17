"""Cache files: written whole or not at all."""

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

ABANDONED = 3600.0  # s; a partial file that nobody has written to for so long is that of a process that was killed


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` to write to, which takes its place when all is written.

    Not the `whole_file` of commands, which is for a file that a user has named: it goes through links and into pipes,
    and its errors are the user's. Here an error is an OSError, since there is another place to try, the folder is made,
    and what killed processes left in it is cleared away. Nor does it wait for the disk, as checkpoints do, which nobody
    can make again.

    Raises:
        OSError: it cannot be written; nothing is left behind then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(".partial-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()
    # not tempfile's, which nobody else may read: others may read what the umask lets them
    partial = path.parent / f".partial-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        with open(partial, "xb") as file:
            yield file
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
