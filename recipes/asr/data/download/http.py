"""Downloads that go on where they broke off."""

import contextlib
import http.client
import re
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lightning_novograd._version import __version__
from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.data.download.parallel import NEVER, stop_if
from lightning_novograd.recipes.asr.data.download.progress import progress
from lightning_novograd.recipes.asr.data.download.source import Source, verify

RETRIES = 8  # in a row without a new byte
PAUSE, LONGEST_PAUSE = 1.0, 60.0  # s before the first retry, doubled for each further one
TIMEOUT = 60.0  # s without a byte
BLOCK = 1 << 18
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)  # what a server answers that may answer otherwise later


class _BrokenOffError(Exception):
    """The connection, not the file, is at fault: it is worth another try."""


class _UselessPartError(_BrokenOffError):
    """What we have cannot be continued."""


def download(source: Source, target: Path, stop: threading.Event = NEVER) -> Path:
    """Fetch a file to `target`, unless the right one is there.

    What has arrived stands in ``target.part``, from whose end this or a later call goes on, and becomes `target` when
    it is complete and right. A server that cannot continue a file sends it again from the beginning. A broken
    connection is tried again after a pause, up to `RETRIES` times in a row without a new byte; a file with a wrong
    checksum once, from its beginning.

    Args:
        source: the file on the server.
        target: where it goes; its folder is made.
        stop: breaks off when it is set.

    Returns:
        `target`.

    Raises:
        DataError: the server does not have the file, or cannot be reached; the file is another than `source` says; or
            it cannot be written. One line, with the address.
        Stopped: `stop` was set; the part stays.
    """
    if target.exists():
        try:
            verify(target, source, stop)
        except DataError:  # of another release of the corpus, or damaged
            target.unlink()
        else:
            return target
    part = target.with_name(target.name + ".part")
    for chance in (1, 2):
        _complete(source, part, stop)
        try:
            verify(part, source, stop)
        except DataError as error:
            part.unlink(missing_ok=True)
            if chance == 2:
                raise DataError(f"{source.url}: what the server sends is another file: {error}") from error
        else:
            break
    part.replace(target)
    return target


def _complete(source: Source, part: Path, stop: threading.Event) -> None:
    """Bring `part` to its full length, whatever it takes."""
    failed = 0
    while True:
        before = _size(part)
        try:
            _go_on(source, part, stop)
        except _BrokenOffError as error:
            if isinstance(error, _UselessPartError):
                part.unlink(missing_ok=True)
            failed = 0 if _size(part) > before else failed + 1
            if failed > RETRIES:
                raise DataError(f"{source.url}: {error}; given up after {RETRIES} retries") from error
            stop.wait(min(PAUSE * 2.0 ** max(0, failed - 1), LONGEST_PAUSE))
            stop_if(stop)
        else:
            return


def _go_on(source: Source, part: Path, stop: threading.Event) -> None:
    """One request: append to `part` what it lacks."""
    have = _size(part)
    if source.size is not None and have >= source.size:
        if have == source.size:
            return
        raise _UselessPartError(f"{part} has {have} bytes, but the file has {source.size}")
    response = _open(source.url, have)
    if response is None:
        return
    with response:
        start, total = _what_comes(response)
        if start not in (0, have):
            raise _UselessPartError(f"the server sends bytes from {start} on, not from {have}")
        expected = source.size if total is None else total
        if source.size is not None and expected != source.size:  # said before the hours that the download takes
            raise DataError(
                f"{source.url}: the server's file has {expected} bytes, but {source.name} has {source.size}"
            )
        with _opened(part, "ab" if start else "wb") as file, progress(source.name, expected, done=start) as bar:
            while block := _read(response):
                stop_if(stop)
                file.write(block)
                bar.advance(len(block))
                start += len(block)
    if total is not None and start < total:
        raise _BrokenOffError(f"the connection ended after {start} of {total} bytes")


def _open(url: str, have: int) -> Any:
    """The server's answer to a request for what comes after `have` bytes; None where that is all."""
    headers = {"User-Agent": f"lightning-novograd/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{have}":
            return None
        said = f"the server answers {error.code} {error.reason}".rstrip()
        if error.code == 416 and have:
            raise _UselessPartError(said) from error
        if error.code in TRANSIENT:
            raise _BrokenOffError(said) from error
        raise DataError(f"{url}: {said}") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise DataError(f"{url}: the server's certificate is refused: {error.reason.verify_message}") from error
        raise _BrokenOffError(f"the server cannot be reached: {error.reason}") from error
    except (http.client.HTTPException, OSError) as error:
        raise _BrokenOffError(f"the server does not answer: {error or type(error).__name__}") from error


def _what_comes(response: Any) -> tuple[int, int | None]:
    """The first byte that the answer holds, and the length of the whole file where the server says it."""
    length = response.headers.get("Content-Length", "")
    total = int(length) if re.fullmatch(r"\d{1,18}", length) else None
    if response.status != 206:
        return 0, total
    span = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
    if span is None:
        raise _UselessPartError(
            f"the server sends a part without saying which: {response.headers.get('Content-Range')!r}"
        )
    start = int(span[1])
    if span[2] == "*":
        return start, None if total is None else start + total
    return start, int(span[2])


def _read(response: Any) -> bytes:
    try:
        return bytes(response.read(BLOCK))
    except (http.client.HTTPException, OSError) as error:
        raise _BrokenOffError(f"the connection broke: {error or type(error).__name__}") from error


@contextlib.contextmanager
def _opened(part: Path, mode: str) -> Iterator[IO[bytes]]:
    """A file to write to; an error of the disk is none of the connection's."""
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with open(part, mode) as file:
            yield file
    except OSError as error:
        raise DataError(f"{part} cannot be written: {error.strerror or error}") from error


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
