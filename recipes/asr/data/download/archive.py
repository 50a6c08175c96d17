"""Tar archives unpacked as what they may be: files and folders below one folder, and nothing else."""

import contextlib
import gzip
import shutil
import tarfile
import tempfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.data.download.parallel import NEVER, stop_if
from lightning_novograd.recipes.asr.data.download.progress import progress

BLOCK = 1 << 20


@contextlib.contextmanager
def unpacked(archive: Path, beside: Path, stop: threading.Event = NEVER) -> Iterator[Path]:
    """A new folder with what is in a ``.tar.gz``, gone at the end: move out of it what is wanted.

    Args:
        archive: the file.
        beside: the folder that the new one is made in, so that moving is renaming.
        stop: breaks off when it is set.

    Raises:
        DataError: the archive is corrupt or not complete; it holds a link, a device, or a name that is absolute or
            leads out of the folder; or there is no room for it.
        Stopped: `stop` was set.
    """
    beside.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{archive.name.partition('.')[0]}-", dir=beside))
    try:
        try:
            _unpack(archive, folder, stop)
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{archive} is corrupt: {error}") from error
        except OSError as error:
            raise DataError(f"{archive} cannot be unpacked into {beside}: {error.strerror or error}") from error
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unpack(archive: Path, folder: Path, stop: threading.Event) -> None:
    # from 3.11.4 on; the checks here leave it nothing to refuse, it sets permissions and owners
    safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with (
        open(archive, "rb") as file,
        gzip.GzipFile(fileobj=file) as stream,
        progress(f"unpack {archive.name}", archive.stat().st_size) as bar,
    ):
        seen = 0
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                stop_if(stop)
                _check(archive, member)
                tar.extract(member, folder, **safe)  # type: ignore[arg-type]
                bar.advance(file.tell() - seen)
                seen = file.tell()
        while stream.read(BLOCK):  # to the checksum at its end
            stop_if(stop)


def _check(archive: Path, member: tarfile.TarInfo) -> None:
    """Refuse whatever is no file and no folder below the folder that it is unpacked into."""
    path = PurePosixPath(member.name)
    if not (member.isreg() or member.isdir()):
        raise DataError(f"{archive} is refused: {member.name!r} is neither a file nor a folder")
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or ":" in member.name or "\0" in member.name:
        raise DataError(f"{archive} is refused: {member.name!r} may lead out of the folder")
