"""A file that can be downloaded, and how to know that it is the right one."""

import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.data.download.parallel import NEVER, stop_if
from lightning_novograd.recipes.asr.data.download.progress import progress

BLOCK = 1 << 20


@dataclass(frozen=True)
class Source:
    """A file on a server.

    Args:
        url: http or https.
        sha256: of the file, 64 hexadecimal digits; None where none is known.
        size: bytes; None where it is not known.

    Raises:
        ConfigError: the address or the checksum is none.

    Example:
        >>> Source("https://www.openslr.org/resources/12/dev-clean.tar.gz").name
        'dev-clean.tar.gz'
    """

    url: str
    sha256: str | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc or not self.name:
            raise ConfigError("url", f"must be the http or https address of a file, not {self.url!r}")
        if self.sha256 is not None and (len(self.sha256) != 64 or set(self.sha256.lower()) - set("0123456789abcdef")):
            raise ConfigError("sha256", f"must be 64 hexadecimal digits, not {self.sha256!r}")

    @property
    def name(self) -> str:
        """What the file is called."""
        return urlsplit(self.url).path.rpartition("/")[2]


def verify(file: Path, source: Source, stop: threading.Event = NEVER) -> None:
    """Whether a file is what `source` says, as far as it says anything.

    Raises:
        DataError: its size or its checksum is another, or it cannot be read.
        Stopped: `stop` was set.
    """
    try:
        size = file.stat().st_size
        if source.size is not None and size != source.size:
            raise DataError(f"{file} has {size} bytes, but {source.name} has {source.size}")
        if source.sha256 is None:
            return
        digest = hashlib.sha256()
        with open(file, "rb") as stream, progress(f"check {source.name}", size) as bar:
            while block := stream.read(BLOCK):
                stop_if(stop)
                digest.update(block)
                bar.advance(len(block))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    if digest.hexdigest() != source.sha256.lower():
        raise DataError(f"{file} has sha256 {digest.hexdigest()}, but {source.name} has {source.sha256}")
