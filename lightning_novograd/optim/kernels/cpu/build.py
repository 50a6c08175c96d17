"""Build the C++ kernels for the CPU: `python -m lightning_novograd.optim.kernels.cpu.build` prints where they lie."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from lightning_novograd.optim.kernels.cpu.library import FLAGS, FOLDER, library_path, load


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
        sources = [str(path) for path in sorted(FOLDER.glob("*.cpp"))]
        command = [compiler, *FLAGS, *includes, *sources, "-o", str(library), *libraries]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise RuntimeError(f"{compiler} could not build the CPU kernels:\n{result.stderr[-4000:]}")
        library.replace(target)  # at once, so that no other process loads half of it
    load.cache_clear()
    return target


if __name__ == "__main__":
    print(build())
