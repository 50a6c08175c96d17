"""Checkpoint files, read as data: no code that a file names ever runs."""

import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import torch

from lightning_novograd.errors import DataError


def load_plain(file: Path | str | IO[bytes], allowed: Iterable[Any] = (), map_location: str = "cpu") -> Any:
    """What torch.save wrote into a file, if that is tensors and plain data.

    Args:
        file: a path, or an open file.
        allowed: further classes and functions that it may name.
        map_location: `"meta"` reads no weights.

    Raises:
        OSError: it cannot be opened or read.
        DataError: it is no checkpoint, a damaged one, or names code; the message is one line, without the file's name.

    """
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(allowed)):
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # another one is no checkpoint
            return torch.load(file, map_location=map_location, weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # in the bytes of another file an unpickler may see any instruction, and raise whatever comes of it
        raise DataError(f"is no checkpoint, or holds more than plain data{why_not_plain(error)}") from error


def why_not_plain(error: Exception) -> str:
    """`": it names os.system"`, if torch said so; its own text is a page that ends in advice to run the file's code."""
    text = str(error).strip()
    if named := re.search(r"GLOBAL ([\w.]+)", text):
        return f": it names {named[1]}"
    if isinstance(error, EOFError):
        return ": it ends too early"
    if type(error) is RuntimeError and text:
        return ": " + text.splitlines()[0].partition(". This is an internal")[0]
    return ""
