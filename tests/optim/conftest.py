"""The C++ kernels: there for the tests that ask for them, and absent for all others."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from lightning_novograd.optim.kernels.cpu import library
from lightning_novograd.optim.kernels.cpu.build import build

FOLDER = Path(__file__).resolve().parents[2] / ".cache" / "kernels"


@pytest.fixture(scope="session")
def kernel_library() -> Path:
    """A library of the sources as they are: the installed one, or else one that is built for the tests."""
    try:
        library.check_library(library.PACKAGED.read_bytes())
        return library.PACKAGED
    except (OSError, library.UnusableLibraryError):
        pass
    if sys.platform != "linux" or not (os.environ.get("CXX") or shutil.which("g++")):
        pytest.skip("needs Linux and a C++ compiler: install g++")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch, FileLock(FOLDER / "lock"):
        patch.setenv("NOVOGRAD_KERNEL_DIR", str(FOLDER))
        return library.library_path() if library.library_path().exists() else build()


@pytest.fixture(scope="session")
def built_kernels(kernel_library):
    """`torch.ops.lightning_novograd` with the kernels in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOVOGRAD_KERNELS", "1")
        patch.setattr(library, "PACKAGED", kernel_library)
        library.load.cache_clear()
        kernels = library.load()
        library.load.cache_clear()
    assert kernels is not None
    return kernels


@pytest.fixture
def cpp_kernels(built_kernels, monkeypatch):
    """Inside the test, the optimizers find the kernels."""
    monkeypatch.setattr(library, "load", lambda: built_kernels)
    return built_kernels


@pytest.fixture(params=["torch", "cpp"])
def kernels(request):
    """Runs a test twice: with torch's kernels only, and with the C++ kernels."""
    if request.param == "cpp":
        request.getfixturevalue("cpp_kernels")
    return request.param
