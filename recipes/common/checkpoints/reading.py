"""Checkpoints of ``train.py``, read as data."""

import errno
import os
from pathlib import Path
from typing import Any

from lightning_novograd.errors import DataError
from lightning_novograd.optim.checkpoint.files import load_plain


class UnreadableError(DataError):
    """A file that is there and that the system does not let this process read: that says nothing of what is in it."""


def read_checkpoint(path: Path, map_location: str = "cpu") -> dict[str, Any]:
    """A Lightning checkpoint, read as data: no code in it ever runs.

    Args:
        path: the file.
        map_location: `"meta"` reads no weights.

    Raises:
        DataError: it is missing or more than plain data.
        UnreadableError: the system refuses it.
    """
    if not os.path.exists(path):  # pathlib would raise for a name that is too long
        raise DataError(f"checkpoint {path} does not exist")
    try:
        checkpoint = load_plain(path, map_location=map_location)
    except OSError as error:
        # torch looks for the directory of a zip file that is cut off before its first byte
        damaged = error.errno == errno.EINVAL and error.filename is None
        if damaged:
            raise DataError(f"checkpoint {path} is damaged") from None
        raise UnreadableError(f"checkpoint {path} cannot be read: {error}") from None
    except DataError as error:
        raise DataError(f"{path} {error}") from None
    if not isinstance(checkpoint, dict):
        raise DataError(f"{path} is no checkpoint of train.py: it holds no mapping")
    return checkpoint
