"""The loader in processes of their own: once torch knows the operators nothing more is loaded."""

import os
import subprocess
import sys

import pytest

LOADED = """
import sys
from pathlib import Path
from lightning_novograd.optim.kernels.cpu import library
library.PACKAGED = Path(sys.argv[1])
assert library.load() is not None
path = sys.argv[1] if Path(sys.argv[1]).exists() else library.library_path()
print(Path(path).resolve() if str(Path(path).resolve()) in Path("/proc/self/maps").read_text() else "not mapped")
"""


@pytest.mark.parametrize(
    "place",
    [
        "packaged",
        *(pytest.param(place, marks=pytest.mark.slow) for place in ("built", ".", "~/built", "./built/../built")),
    ],
)
def test_a_library_is_loaded_from_wherever_it_lies(place, places, kernel_library, tmp_path):
    path = places[place != "packaged"]
    path.write_bytes(kernel_library.read_bytes())
    folder = path.parent if place in ("packaged", "built") else place
    variables = {"NOVOGRAD_KERNEL_DIR": str(folder), "HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", LOADED, str(places[0])],
        env=os.environ | variables,
        cwd=path.parent if place == "." else tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip() == str(path), run.stderr
    assert not run.stderr


THREADS = """
import os, sys, threading
import torch
from pathlib import Path
from lightning_novograd.optim.kernels.cpu import library
library.PACKAGED = Path(sys.argv[1])
for _ in range(20):
    if os.fork() == 0:
        barrier, found = threading.Barrier(4), []
        threads = [threading.Thread(target=lambda: (barrier.wait(), found.append(library.load()))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os.write(1, f"{sum(ops is not None for ops in [*found, library.load()])}\\n".encode())
        os._exit(0)
    os.wait()
"""


@pytest.mark.parametrize(
    "good", [pytest.param(True, id="good", marks=pytest.mark.slow), pytest.param(False, id="damaged")]
)
def test_threads_may_ask_at_the_same_time(good, places, kernel_library):
    """As those that train several small models: each time in a new process, where nothing is loaded."""
    places[0].write_bytes(kernel_library.read_bytes() if good else b"damaged")
    run = subprocess.run([sys.executable, "-c", THREADS, str(places[0])], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["5" if good else "0"] * 20
    assert run.stderr.count("cannot be used") == (0 if good else 20)


FRESH = """
import os, sys
import torch
from pathlib import Path
from lightning_novograd.optim import NovoGrad
from lightning_novograd.optim.kernels.cpu import library
library.PACKAGED = Path(sys.argv[1])
closed_to_root = sys.argv[2] == "closed" and os.geteuid() == 0
if closed_to_root:
    os.seteuid(65534)  # nobody's: root may read everything
library.load()
if closed_to_root:
    os.seteuid(0)
param = torch.nn.Parameter(torch.ones(5))
param.grad = torch.ones(5)
NovoGrad([param]).step()
print(library.load() is not None)
"""


@pytest.mark.parametrize("folder", ["open", pytest.param("closed", marks=pytest.mark.slow)])
def test_in_a_fresh_process(folder, places, kernel_library, tmp_path):
    """Once with a library that is good and once in a folder that is closed to its reader."""
    packaged = tmp_path / "closed" / "kernels.so"
    packaged.parent.mkdir()
    packaged.write_bytes(kernel_library.read_bytes())
    command = [sys.executable, "-c", FRESH, str(packaged), folder]
    packaged.parent.chmod(0o700 if folder == "open" else 0)
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    packaged.parent.chmod(0o700)
    assert run.stdout.strip() == str(folder == "open"), run.stderr
    assert ("Permission denied" in run.stderr) == (folder == "closed")
    assert run.stderr.count("cannot be used") == (folder == "closed")


AGAIN = """
import importlib, sys
from pathlib import Path

def loaded(library):
    library.PACKAGED = Path(sys.argv[1])
    return library.load()

from lightning_novograd.optim.kernels.cpu import library
first = loaded(library)
if sys.argv[2] == "reload":
    library = importlib.reload(library)
else:
    for name in [name for name in sys.modules if name.startswith("lightning_novograd")]:
        del sys.modules[name]
    library = importlib.import_module("lightning_novograd.optim.kernels.cpu.library")
print(first is not None and loaded(library) is first)
"""


@pytest.mark.parametrize("how", ["reload", pytest.param("import", marks=pytest.mark.slow)])
def test_importing_it_again_does_no_harm(how, places, kernel_library):
    """As notebooks do; the operators are in torch already."""
    command = [sys.executable, "-c", AGAIN, str(kernel_library), how]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "True"
    assert not run.stderr
