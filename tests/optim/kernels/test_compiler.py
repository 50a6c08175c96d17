"""How the kernels are compiled, and what is said where they cannot be."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_novograd.errors import LightningNovoGradError
from lightning_novograd.optim.kernels.cpu import compiler
from lightning_novograd.optim.kernels.cpu.compiler import BuildError, compile_kernels

# A compiler that writes down what it is told.
RECORD = """
import sys
from pathlib import Path
Path(sys.argv[1]).write_text("\\n".join(sys.argv[2:]))
Path(sys.argv[sys.argv.index("-o") + 1]).write_text("compiled")
"""


@pytest.fixture
def told(monkeypatch, tmp_path):
    """What a compiler of several words was told."""
    script, record = tmp_path / "a compiler.py", tmp_path / "told"
    script.write_text(RECORD)
    monkeypatch.setenv("CXX", f"{sys.executable} '{script}' {record} --first")
    return lambda: record.read_text().splitlines()


def test_the_compiler_may_be_several_words(told, tmp_path):
    target = compile_kernels(tmp_path / "new" / "folder" / "kernels.so")
    assert target.read_bytes() == compiler.sealed(b"compiled")
    assert told()[0] == "--first"
    assert {Path(word).name for word in told() if word.endswith(".cpp")} == {
        p.name for p in compiler.FOLDER.glob("*.cpp")
    }
    assert [p.name for p in target.parent.iterdir()] == ["kernels.so"]


KILLED = """
import os, sys
from pathlib import Path
from lightning_novograd.optim.kernels.cpu.compiler import compile_kernels
os.environ["CXX"] = f"{sys.executable} -c 'import os; os.kill({os.getpid()}, 9)'"
compile_kernels(Path(sys.argv[1]))
"""


def test_the_folder_of_a_killed_build_goes_with_a_later_one(told, tmp_path):
    target = tmp_path / "cache" / "kernels.so"
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", KILLED, target]).returncode == -signal.SIGKILL
    old, young = target.parent.iterdir()
    (target.parent / "tmp_of_others").mkdir()  # the folder may be /tmp
    link = target.parent / f"{old.name}_link"
    link.symlink_to(tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    before = old.stat().st_mtime - 2 * 3600
    for path in (old, target.parent / "tmp_of_others", tmp_path / "kept", link):
        os.utime(path, (before, before), follow_symlinks=False)
    compile_kernels(target)
    left = {target.name, young.name, "tmp_of_others", link.name}
    assert {path.name for path in target.parent.iterdir()} == left, "the young one may be at work"
    assert (tmp_path / "kept").exists()


def test_only_torchs_stable_interface_is_used():
    """Anything else of torch would tie the library to one release."""
    sources = [path for pattern in ("*.cpp", "*.h") for path in compiler.FOLDER.glob(pattern)]
    includes = {
        line for path in sources for line in path.read_text().splitlines() if line.startswith("#include <torch")
    }
    assert includes == {"#include <torch/csrc/stable/c/shim.h>"}
    assert "-DTORCH_TARGET_VERSION=0x020a000000000000" in compiler.FLAGS


def test_any_change_of_the_sources_changes_the_hash(monkeypatch, tmp_path):
    copy = tmp_path / "cpu"
    shutil.copytree(compiler.FOLDER, copy)
    monkeypatch.setattr(compiler, "FOLDER", copy)
    hashes = {compiler.sources_hash.__wrapped__()}
    for path in sorted([*copy.glob("*.cpp"), *copy.glob("*.h")]):
        path.write_text(path.read_text() + "\n")
        hashes.add(compiler.sources_hash.__wrapped__())
    (copy / "kernels.so").write_text("not a source")
    hashes.add(compiler.sources_hash.__wrapped__())
    assert len(hashes) == 1 + len([*copy.glob("*.cpp"), *copy.glob("*.h")])


def test_what_editors_leave_is_no_source(told, monkeypatch, tmp_path):
    copy = tmp_path / "cpu"
    shutil.copytree(compiler.FOLDER, copy)
    monkeypatch.setattr(compiler, "FOLDER", copy)
    before = compiler.sources_hash.__wrapped__()
    for name in ("loops.cpp~", "loops.cpp.orig", "loops.h.swp", "_loops.cuh~", "#loops.cpp#"):
        (copy / name).write_text("an older version")
    for name in (".#loops.cpp", ".#loops.h"):
        (copy / name).symlink_to("somebody@somewhere.1234")  # Emacs's lock
    assert compiler.sources_hash.__wrapped__() == before
    compile_kernels(tmp_path / "kernels.so")
    assert not [word for word in told() if "#" in word or "~" in word]


def no_torch(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))


def old_torch(monkeypatch, tmp_path):
    no_torch(monkeypatch, tmp_path)
    for header in ("torch/csrc/stable/c/shim.h", "torch/headeronly/version.h"):
        path = tmp_path / "torch" / "include" / header
        path.parent.mkdir(parents=True)
        path.write_text("#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 9\n")


def torch_without_its_version(monkeypatch, tmp_path):
    old_torch(monkeypatch, tmp_path)
    (tmp_path / "torch/include/torch/headeronly/version.h").unlink()


def torch_with_an_odd_version(monkeypatch, tmp_path):
    old_torch(monkeypatch, tmp_path)
    (tmp_path / "torch/include/torch/headeronly/version.h").write_text("")


def torch_that_cannot_be_read(monkeypatch, tmp_path):
    torch_without_its_version(monkeypatch, tmp_path)
    (tmp_path / "torch/include/torch/headeronly/version.h").mkdir()


def file_for_a_folder(monkeypatch, tmp_path):
    (tmp_path / "folder").write_text("")


FAILURES = {
    "another system": (lambda patch, _: patch.setattr(sys, "platform", "darwin"), "on Linux only, not on darwin"),
    "no compiler": (lambda patch, _: patch.setattr("shutil.which", lambda name: None), "need a C\\+\\+ compiler"),
    "missing compiler": (lambda patch, _: patch.setenv("CXX", "no-such-compiler"), "no-such-compiler"),
    "open quotation": (lambda patch, _: patch.setenv("CXX", "g++ '"), "CXX=.* cannot be read as a command"),
    "failing compiler": (lambda patch, _: patch.setenv("CXX", "false -x"), "false -x could not build"),
    "no torch": (no_torch, "need the headers of torch 2.10"),
    "old torch": (old_torch, "need torch 2.10 or later; .*torch is 2.9"),
    "torch without its version": (torch_without_its_version, "need the headers of torch 2.10"),
    "torch with an odd version": (torch_with_an_odd_version, "need torch 2.10 or later; .*torch does not say"),
    "torch that cannot be read": (torch_that_cannot_be_read, "could not be built to .*kernels.so: .*version.h"),
    "no folder": (file_for_a_folder, "could not be built to .*kernels.so: "),
}


@pytest.mark.parametrize("why", FAILURES)
def test_where_it_cannot_be_built_one_message_says_why(why, monkeypatch, tmp_path):
    arrange, message = FAILURES[why]
    monkeypatch.setenv("CXX", "")
    arrange(monkeypatch, tmp_path)
    with pytest.raises(BuildError, match=message) as error:
        compile_kernels(tmp_path / "folder" / "kernels.so")
    assert isinstance(error.value, LightningNovoGradError)
