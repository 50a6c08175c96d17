"""What commands write: files that are whole or not there, and a stdout that may be closed."""

import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TextIO, cast

from lightning_novograd.errors import ConfigError

_Arguments = ParamSpec("_Arguments")
# as a shell shows a program that SIGPIPE has ended
_CLOSED_PIPE = 141


def check_folder(out: Path) -> None:
    """Before any work is done: whether the file has a folder that it can be in.

    Raises:
        ConfigError: it has none.

    """
    try:
        out.exists()  # a name may be too long
        missing = not out.parent.is_dir()
    except OSError as error:
        raise ConfigError(str(out), f"cannot be written: {error.strerror}") from error
    if missing:
        raise ConfigError(str(out), f"there is no folder {str(out.parent)!r}; make it first")


@contextlib.contextmanager
def whole_file(out: Path) -> Iterator[Path]:
    """A path to write to, which becomes `out` when the block has ended without an error, and otherwise is gone.

    It lies in a new folder beside `out`, under the same name. A link is written through, and so is what is no file: a
    pipe stays one.

    Raises:
        ConfigError: the file cannot be written.

    """
    try:
        target = out.resolve()
        if target.is_symlink():  # from Python 3.13 on a circle is not refused by itself
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if target.exists() and not target.is_file():
            yield target
            return
        with tempfile.TemporaryDirectory(prefix=".", dir=target.parent, ignore_cleanup_errors=True) as folder:
            partial = Path(folder) / target.name
            yield partial
            partial.replace(target)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's writer on a full disk, pgf without TeX
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(str(out), f"cannot be written: {reason}") from error


class _StdoutError(Exception):
    """What stdout raises here, apart from the same exception of anything else."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class _Stdout:
    """A stdout whose own errors are known as such."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            raise _StdoutError(error) from error

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            raise _StdoutError(error) from error


def writes_to_stdout(main: Callable[_Arguments, int]) -> Callable[_Arguments, int]:
    """Make a command end quietly when its reader does (`... | head`), and with one line when stdout cannot be written.

    Args:
        main: the command; returns its exit status.

    """

    @wraps(main)
    def run(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> int:
        if sys.stdout is None:
            return main(*args, **kwargs)
        original, stdout = sys.stdout, _Stdout(sys.stdout)
        try:
            # what is in the buffer is written here, not when the interpreter ends and nobody can catch it
            with contextlib.redirect_stdout(cast(TextIO, stdout)):
                try:
                    status = main(*args, **kwargs)
                except SystemExit:  # of --help
                    stdout.flush()
                    raise
                stdout.flush()
        except _StdoutError as failure:
            _drop_buffer(original)
            if isinstance(failure.error, BrokenPipeError):
                return _CLOSED_PIPE
            print(f"error: stdout cannot be written: {failure.error.strerror or failure.error}", file=sys.stderr)
            return 2
        return status

    return run


def _drop_buffer(stream: TextIO) -> None:
    """Empty the buffer of a stream that cannot be written: else the interpreter would complain of it when it ends."""
    try:
        descriptor = stream.fileno()
        kept = os.dup(descriptor)
    except (OSError, ValueError):  # it is none of the system's files
        return
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, descriptor)
        stream.flush()
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)
        os.close(null)
