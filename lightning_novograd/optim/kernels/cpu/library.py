"""The C++ kernels for the CPU, optional: built by `python -m lightning_novograd.optim.kernels.cpu.library`.

That is needed once per user and torch release; NovoGrad and LARC use them from then on. Without them both go through
torch's own fused SGD kernel, layer by layer. Nothing is compiled unasked: the two differ in the last bits of their
results, which must not change in the middle of a training.
"""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

_FOLDER = Path(__file__).parent
_FLAGS = ("-O3", "-fno-math-errno", "-std=c++20", "-fPIC", "-shared", "-fopenmp", "-DAT_PARALLEL_OPENMP=1")


def library_path() -> Path:
    """Where the library for these sources and torch release lies, or would; `NOVOGRAD_KERNEL_DIR` moves the folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lightning_novograd"
    folder = Path(os.environ.get("NOVOGRAD_KERNEL_DIR", cache))
    sources = b"".join(path.read_bytes() for path in sorted(_FOLDER.glob("*.[ch]*")))
    key = hashlib.sha256(sources + " ".join((*_FLAGS, torch.__version__)).encode()).hexdigest()[:16]
    return folder / f"kernels_{key}.so"


@functools.cache
def load() -> Any | None:
    """`torch.ops.lightning_novograd` with the kernels, if they have been built, else None; asked once per process."""
    if not library_path().exists():
        return None
    torch.ops.load_library(str(library_path()))
    return torch.ops.lightning_novograd


def build() -> Path:
    """Compile the kernels, which takes some seconds, and return the library's path."""
    from torch.utils.cpp_extension import include_paths

    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if sys.platform != "linux" or compiler is None:
        raise RuntimeError("building the CPU kernels needs Linux and a C++ compiler (g++, or what CXX names)")
    if "ATen parallel backend: OpenMP" not in torch.__config__.parallel_info():
        raise RuntimeError("building the CPU kernels needs a torch whose parallel backend is OpenMP")
    target = library_path()
    target.parent.mkdir(parents=True, exist_ok=True)
    includes = [flag for path in include_paths() for flag in ("-isystem", path)]
    libraries = ["-L" + str(Path(torch.__file__).parent / "lib"), "-lc10", "-ltorch_cpu", "-ltorch"]
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        library = Path(folder) / target.name
        sources = [str(path) for path in sorted(_FOLDER.glob("*.cpp"))]
        command = [compiler, *_FLAGS, *includes, *sources, "-o", str(library), *libraries]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise RuntimeError(f"{compiler} could not build the CPU kernels:\n{result.stderr[-4000:]}")
        library.replace(target)  # at once, so that no other process loads half of it
    load.cache_clear()
    return target


if __name__ == "__main__":
    print(build())
