"""What commands write: files that are whole or not there, and a stdout that may be closed."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import ParamSpec

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

    Raises:
        ConfigError: the file cannot be written.

    """
    partial = out.with_name(f"{out.stem}.partial{out.suffix}")
    try:
        yield partial
        partial.replace(out)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's writer on a full disk, pgf without TeX
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(str(out), f"cannot be written: {reason}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def writes_to_stdout(main: Callable[_Arguments, int]) -> Callable[_Arguments, int]:
    """Make a command end quietly when its reader does (`... | head`), and with one line when stdout cannot be written.

    Args:
        main: the command; returns its exit status.

    """

    @wraps(main)
    def run(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> int:
        try:
            status = main(*args, **kwargs)
            if sys.stdout is not None:
                sys.stdout.flush()  # here, not when the interpreter ends and nobody can catch it
        except OSError as error:
            if error.filename is not None:
                raise  # of a file
            if not isinstance(error, BrokenPipeError):
                print(f"error: stdout cannot be written: {error.strerror or error}", file=sys.stderr)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still in its buffer
            return _CLOSED_PIPE if isinstance(error, BrokenPipeError) else 2
        return status

    return run
