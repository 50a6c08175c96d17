"""The library of C++ kernels for the CPU, where it has been built: its path, and how it is loaded.

Building it (`python -m lightning_novograd.optim.kernels.cpu.build`) is needed once per user and torch release;
NovoGrad and LARC use the kernels from then on. Without them both go through torch's own fused SGD kernel, layer by
layer. Nothing is compiled unasked: the two differ in the last bits of their results, which must not change in the
middle of a training.
"""

import functools
import hashlib
import os
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent
FLAGS = ("-O3", "-fno-math-errno", "-std=c++20", "-fPIC", "-shared", "-fopenmp", "-DAT_PARALLEL_OPENMP=1")


def library_path() -> Path:
    """Where the library for these sources and torch release lies, or would; `NOVOGRAD_KERNEL_DIR` moves the folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lightning_novograd"
    folder = Path(os.environ.get("NOVOGRAD_KERNEL_DIR", cache))
    sources = b"".join(path.read_bytes() for path in sorted(FOLDER.glob("*.[ch]*")))
    key = hashlib.sha256(sources + " ".join((*FLAGS, torch.__version__)).encode()).hexdigest()[:16]
    return folder / f"kernels_{key}.so"


@functools.cache
def load() -> Any | None:
    """`torch.ops.lightning_novograd` with the kernels, if they have been built, else None; asked once per process."""
    if not library_path().exists():
        return None
    torch.ops.load_library(str(library_path()))
    return torch.ops.lightning_novograd
