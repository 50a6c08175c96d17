"""The library of C++ kernels for the CPU: where it lies, and how it is loaded.

A wheel for Linux brings it along, and an editable install builds it where there is a compiler. Elsewhere
`python -m lightning_novograd.optim.kernels.cpu.build` builds it into the user's cache, once for all torch releases.
Without it NovoGrad and LARC go through torch's own fused SGD kernel, layer by layer. Nothing is compiled unasked: the
two differ in the last bits of their results, which must not change in the middle of a training.

`load` never raises. Where there is a library and none that can be used, one warning says why, and the slower way is
taken.
"""

import contextlib
import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lightning_novograd.log import every_rank_logger
from lightning_novograd.optim.kernels.cpu.compiler import (
    FOLDER,
    BuildError,
    is_of_these_sources,
    is_whole,
    sources_hash,
    wish,
)

log = every_rank_logger(__name__)

PACKAGED = FOLDER / "lib" / "kernels.so"  # by itself: a .so among modules looks like one

_BUILD = "python -m lightning_novograd.optim.kernels.cpu.build"
_LARGEST = 1 << 26  # bytes; it has some hundred kB

# The sources of the library whose operators torch knows, kept when this module is reloaded: operators cannot be taken
# back, nor can another library's take their place.
_registered: str | None = globals().get("_registered")
_registering = threading.Lock()

# What NOVOGRAD_KERNEL_INSTRUCTIONS may ask for (loops.cpp); where the processor lacks it, the next one is taken.
_INSTRUCTIONS = ("avx512", "avx2", "portable")


class UnusableLibraryError(Exception):
    """A file that is no library of these kernels; the message says why."""


def library_path() -> Path:
    """Where the library that `build` makes lies, or would; `NOVOGRAD_KERNEL_DIR` moves the folder.

    Raises:
        BuildError: there is no home directory, and no variable that names a folder.

    """
    folder: str | Path | None = os.environ.get("NOVOGRAD_KERNEL_DIR")
    if not folder:
        cache = os.environ.get("XDG_CACHE_HOME")
        try:
            folder = (Path(cache) if cache else Path.home() / ".cache") / "lightning_novograd"
        except RuntimeError as error:
            raise BuildError(f"no folder for the CPU kernels: {error} Set NOVOGRAD_KERNEL_DIR.") from error
    # for a name without a slash the system looks in other folders
    return Path(os.path.abspath(os.path.expanduser(folder))) / f"kernels_{sources_hash()}.so"


class _Once:
    """A function without arguments that runs once, also when several threads ask for its result at the same time."""

    def __init__(self, function: Callable[[], Any]) -> None:
        functools.update_wrapper(self, function)
        self._cached, self._lock = functools.cache(function), threading.Lock()

    def __call__(self) -> Any:
        with self._lock:
            return self._cached()

    def cache_clear(self) -> None:
        """Let the next call run the function again."""
        self._cached.cache_clear()


@_Once
def load() -> Any | None:
    """`torch.ops.lightning_novograd` with the kernels, or None; asked once per process.

    `NOVOGRAD_KERNELS=0` keeps them away.
    """
    try:
        if wish() == "0":
            return None
    except BuildError as error:
        log.warning("%s: the C++ kernels are used where they are found.", error)
    path, problems = _search()
    if path is not None:
        _check_instructions()
        return torch.ops.lightning_novograd
    if problems:
        log.warning(
            "The C++ kernels cannot be used: %s. NovoGrad and LARC use torch's own kernels instead, which are slower. "
            "`%s` builds new ones.",
            "; ".join(problems),
            _BUILD,
        )
    return None


def status() -> str:
    """In one line: whether the optimizers use the kernels here, whose and with which instructions, or why not."""
    with contextlib.suppress(BuildError):
        if wish() == "0":
            return "not used: NOVOGRAD_KERNELS=0"
    path, problems = _search()
    if path is not None:
        origin = "came with the package" if path == PACKAGED else "built on this machine"
        return f"used, with {_instructions(path)} instructions; {origin}: {path}"
    if problems:
        return f"not used: {'; '.join(problems)}; `{_BUILD}` builds new ones"
    none = "not used: none came with the package or was built on this machine"
    return f"{none}; `{_BUILD}` builds them" if sys.platform == "linux" else f"{none}, which takes Linux"


def _search() -> tuple[Path | None, list[str]]:
    """Load the first library that can be used: its path, and what is wrong with those before it."""
    problems = []
    for place in (lambda: PACKAGED, library_path):
        path: Path | str = "the folder of built kernels"
        try:
            path = place()
            _open(path)
        except (FileNotFoundError, NotADirectoryError, BuildError):
            continue  # none was built
        except (OSError, AttributeError, UnusableLibraryError) as error:
            problems.append(f"{path}: {error}")
            continue
        return path, problems
    return None, problems


def _instructions(path: Path) -> str:
    """Of those that the library has, which its loops use on this processor."""
    try:
        name = ctypes.CDLL(str(path)).lightning_novograd_instructions
    except (OSError, AttributeError):  # it took the place of the one that this process has loaded
        return "unknown"
    name.restype = ctypes.c_char_p
    return name().decode()


def _check_instructions() -> None:
    """Warn of a word that names no instructions: the kernels then use the best that the processor has."""
    asked = os.environ.get("NOVOGRAD_KERNEL_INSTRUCTIONS")
    if asked and asked not in _INSTRUCTIONS:
        log.warning(
            "NOVOGRAD_KERNEL_INSTRUCTIONS=%s is none of %s: the C++ kernels use the best that the processor has.",
            asked,
            ", ".join(_INSTRUCTIONS),
        )


def _open(path: Path) -> None:
    """Load the library at `path` and make its operators known to torch."""
    global _registered
    # Reading a pipe waits for a writer, and reading a huge file fills memory; of all else, the reading says what it is.
    readable = os.path.isdir(path) or (os.path.isfile(path) and os.path.getsize(path) <= _LARGEST)
    if os.path.exists(path) and not readable:
        raise UnusableLibraryError("it is not a library")
    check_library(path.read_bytes())
    with _registering:
        if _registered == sources_hash():
            return
        library = ctypes.CDLL(str(path))
        library.lightning_novograd_register.restype = ctypes.c_bool
        if not library.lightning_novograd_register():
            raise UnusableLibraryError("torch refused its operators")
        _registered = sources_hash()


def check_library(content: bytes) -> None:
    """Raise if a file is not the library as it was built, or not one of these sources.

    Loading it would end the process if it is damaged, and would bring operators of another version otherwise.

    Args:
        content: of the file.

    Raises:
        UnusableLibraryError: it should not be loaded.

    """
    if content[:6] != b"\x7fELF\x02\x01":
        raise UnusableLibraryError("it is not a library for this machine")
    if not is_whole(content):
        raise UnusableLibraryError(
            "it is damaged: the file ends too early, or has changed since it was built, as by strip"
        )
    if not is_of_these_sources(content):
        raise UnusableLibraryError("it was built from other sources")
