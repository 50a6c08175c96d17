"""Build the C++ kernels for the CPU: `python -m lightning_novograd.optim.kernels.cpu.build` prints where they lie.

This is for installations that came without them; wheels for Linux bring them along.
"""

import sys
from pathlib import Path

from lightning_novograd.optim.kernels.cpu.compiler import BuildError, compile_kernels
from lightning_novograd.optim.kernels.cpu.library import library_path, load


def build() -> Path:
    """Compile the kernels into the user's cache, which takes some seconds, and return the library's path.

    Raises:
        BuildError: there is no compiler, no cache folder, or the compiler fails.

    """
    target = compile_kernels(library_path())
    load.cache_clear()
    return target


if __name__ == "__main__":
    try:
        print(build())
    except BuildError as error:
        sys.exit(str(error))
