"""Compile the C++ kernels. This module imports no torch, so that `setup.py` can use it too, by its path."""

import functools
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from lightning_novograd.errors import LightningNovoGradError

FOLDER = Path(__file__).parent
OLDEST_TORCH = (2, 10)
FLAGS = (
    "-O3",
    "-fno-math-errno",
    "-std=c++17",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    # functions of torch's stable ABI that this release has; every later one has them too
    f"-DTORCH_TARGET_VERSION=0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}000000000000",
)

_BUILDING = "building_kernels_"  # how the names of the folders begin in which libraries are made
_ABANDONED = 3600  # seconds; a build takes some ten

# Follows the library in its file, and a SHA-256 of all before it follows this
_SEAL = b"\0lightning_novograd sha256 "

_VERSION = "include/torch/headeronly/version.h"  # in torch's folder


class BuildError(LightningNovoGradError, RuntimeError):
    """The kernels cannot be compiled; the message says what is missing."""


def wish() -> str:
    """What `NOVOGRAD_KERNELS` asks for: "0" for no kernels, "require" for none but built ones; unset, it is "1".

    Raises:
        BuildError: it is another word.

    """
    value = os.environ.get("NOVOGRAD_KERNELS") or "1"
    if value not in ("0", "1", "require"):
        raise BuildError(f"NOVOGRAD_KERNELS={value} is none of 0, 1, require")
    return value


def _sources(*patterns: str) -> list[Path]:
    """The C++ files, without what editors leave beside them: backups (`loops.cpp~`) and locks (`.#loops.cpp`)."""
    return sorted(path for pattern in patterns for path in FOLDER.glob(pattern) if not path.name.startswith("."))


@functools.cache
def sources_hash() -> str:
    """Of all that decides what the library does and how it ends; it is compiled in, and the loader compares it."""
    parts = [path.read_bytes() for path in _sources("*.cpp", "*.h")]
    parts += [_SEAL, " ".join(FLAGS).encode(), platform.machine().encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def sealed(content: bytes) -> bytes:
    """The library with its checksum at the end, where nothing that loads it looks."""
    return content + _SEAL + hashlib.sha256(content).hexdigest().encode()


def is_whole(content: bytes) -> bool:
    """Whether a file still holds what `sealed` returned."""
    return content == sealed(content.rpartition(_SEAL)[0])


def is_of_these_sources(content: bytes) -> bool:
    """Whether a library was built from the sources as they are."""
    return f"lightning_novograd sources {sources_hash()}\0".encode() in content


def compile_kernels(target: Path) -> Path:
    """Compile the library to `target`, which takes some seconds; `CXX` names another compiler.

    Raises:
        BuildError: this is not Linux, there is no compiler, no torch from 2.10 on, or the compiler fails.

    """
    if sys.platform != "linux":
        raise BuildError(f"the CPU kernels are built on Linux only, not on {sys.platform}")
    try:
        compiler, torch = _compiler(), _torch()
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=_BUILDING, dir=target.parent) as folder:
            _remove_abandoned(Path(folder))
            library = Path(folder) / target.name
            command = [
                *compiler,
                *FLAGS,
                f'-DNOVOGRAD_SOURCES="{sources_hash()}"',
                *("-isystem", str(torch / "include")),
                *map(str, _sources("*.cpp")),
                *("-o", str(library)),
                *("-L" + str(torch / "lib"), "-ltorch_cpu"),
            ]
            result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            if result.returncode != 0:
                raise BuildError(f"{shlex.join(compiler)} could not build the CPU kernels:\n{result.stderr[-4000:]}")
            library.write_bytes(sealed(library.read_bytes()))
            library.replace(target)  # at once, so that no other process loads half of it
    except OSError as error:
        raise BuildError(f"the CPU kernels could not be built to {target}: {error}") from error
    return target


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed builds have left: folders like `folder`, which is new, that are older by an hour.

    Ages are those of the file system, whose clock may differ from this machine's.
    """
    now = folder.stat().st_mtime
    for other in folder.parent.glob(f"{_BUILDING}*"):
        try:
            age = now - other.lstat().st_mtime
        except OSError:  # gone in the meantime
            continue
        if age > _ABANDONED:
            shutil.rmtree(other, ignore_errors=True)  # which follows no link


def _compiler() -> list[str]:
    """The command that compiles C++, which may be several words, as in `ccache g++`."""
    named = os.environ.get("CXX", "")
    try:
        command = shlex.split(named) or [name for name in ("g++", "c++") if shutil.which(name)][:1]
    except ValueError as error:
        raise BuildError(f"CXX={named!r} cannot be read as a command: {error}") from error
    if not command:
        raise BuildError("the CPU kernels need a C++ compiler: install g++, or name one in CXX")
    return command


def _torch() -> Path:
    """The folder of the torch to build for.

    It is found without an import: in pip's isolated build environment torch cannot be imported, but where it will run
    lies its folder, and its headers do not depend on anything else.
    """
    spec = importlib.util.find_spec("torch")
    places = [*(spec.submodule_search_locations or [] if spec else [])]
    places += [os.path.join(sysconfig.get_path(name), "torch") for name in ("purelib", "platlib")]
    headers = ("include/torch/csrc/stable/c/shim.h", _VERSION)
    found = [place for place in map(Path, places) if all((place / header).exists() for header in headers)]
    needed = ".".join(map(str, OLDEST_TORCH))
    if not found:
        raise BuildError(f"the CPU kernels need the headers of torch {needed} or later beside this Python")
    numbers = re.findall(r"define TORCH_VERSION_(?:MAJOR|MINOR) (\d+)", (found[0] / _VERSION).read_text())
    if tuple(map(int, numbers)) < OLDEST_TORCH:
        said = f"is {'.'.join(numbers)}" if numbers else "does not say which it is"
        raise BuildError(f"the CPU kernels need torch {needed} or later; {found[0]} {said}")
    return found[0]
