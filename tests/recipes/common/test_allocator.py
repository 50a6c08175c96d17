"""The allocator keeps what tensors give back: read off the page faults of a process."""

import os
import platform
import subprocess
import sys

import pytest

from lightning_novograd.recipes.common import allocator

# 8 MB are below the largest size that glibc takes from its heap; touching them again faults once per page of 4 KiB
PROGRAM = """
import ctypes, resource, sys
from lightning_novograd.recipes.common.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def use():
    blocks = [libc.malloc(8 << 20) for _ in range(8)]
    for block in blocks:
        ctypes.memset(block, 1, 8 << 20)
    for block in blocks:
        libc.free(block)
use(); use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told")
def test_freed_memory_is_used_again():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    faults = {
        way: int(
            subprocess.run(
                [sys.executable, "-c", PROGRAM, way], env=environment, capture_output=True, check=True
            ).stdout
        )
        for way in ("keep", "leave")
    }
    assert faults["keep"] < 100 < faults["leave"]


def test_other_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", None)
    assert allocator.keep_freed_memory() is False
