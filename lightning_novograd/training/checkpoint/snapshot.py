"""What is checked is what is loaded: files read once, for Lightning to load from the same bytes.

A file on a network or in a shared folder may be another one when it is read again.
"""

import io
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch


class Snapshot(io.BytesIO):
    """The bytes of a checkpoint, all in memory, that messages call by the name of their file."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self._name = name

    def __repr__(self) -> str:
        return self._name


def read_checkpoint(saving: Any, file: Any) -> Snapshot:
    """A checkpoint's bytes.

    Args:
        saving: Lightning's module `core.saving`.
        file: a path, whatever fsspec opens, an `http` address (kept where torch.hub keeps its files), or an open file.

    Raises:
        OSError: it cannot be read.

    """
    if hasattr(file, "read"):
        return Snapshot(file.read(), repr(file))
    name = str(file)
    if name.startswith("http"):
        kept = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(name).path).name)
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(name, str(kept))
        return Snapshot(kept.read_bytes(), name)
    with saving.get_filesystem(file).open(file, "rb") as opened:
        return Snapshot(opened.read(), name)


def copy_hparams(saving: Any, file: Any, folder: Path) -> Path:
    """A copy of a `hparams_file` in `folder`; an empty one if there is none, as which Lightning takes it."""
    system = saving.get_filesystem(file)
    copy = folder / f"hparams{Path(str(file)).suffix}"
    if system.exists(file):
        with system.open(file, "rb") as opened:
            copy.write_bytes(opened.read())
    else:
        saving.rank_zero_warn(f"{file} is missing: no hyper-parameters are read", category=RuntimeWarning)
        copy.write_text("{}")
    return copy
