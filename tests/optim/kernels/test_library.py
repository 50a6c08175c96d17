"""What the loader makes of a library that is missing, unreadable, foreign, damaged or stale: never an exception."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_novograd.optim import LARC, NovoGrad
from lightning_novograd.optim.kernels.cpu import library
from lightning_novograd.optim.kernels.cpu.compiler import sealed, sources_hash


def steps():
    """Three steps of NovoGrad, and under LARC, by whatever there is."""
    params = [torch.nn.Parameter(torch.ones(5)) for _ in range(2)]
    optimizers = [NovoGrad(params[:1], lr=0.1), LARC(torch.optim.AdamW(params[1:], lr=0.1))]
    for _ in range(3):
        for param, optimizer in zip(params, optimizers, strict=True):
            param.grad = torch.arange(5.0)
            optimizer.step()
    return params


def unsealed(content):
    return content[: len(content) - len(sealed(b""))]


def for_another_machine(content):
    content = unsealed(content)
    return sealed(content[:18] + (183 if content[18] != 183 else 62).to_bytes(2, "little") + content[20:])


def zeros_from(share):
    """As a power failure leaves a file of which a part was not written to the disk."""

    def spoil(content):
        start = int(len(content) * share)
        return content[:start] + bytes(len(content) - start)

    return spoil


def a_page_of_zeros(content):
    return content[:28672] + bytes(4096) + content[32768:]


def segments_out_of_reach(content):
    return content[:32] + b"\xff" * 8 + content[40:]


SPOILED = {
    "text": (lambda content: b"no library at all", "not a library"),
    "empty": (lambda content: b"", "not a library"),
    "32 bits": (lambda content: content[:4] + b"\1" + content[5:], "not a library"),
    "its head alone": (lambda content: content[:40], "ends too early"),
    "its first half": (lambda content: content[: len(content) // 2], "ends too early"),
    "zeros at its end": (zeros_from(0.97), "has changed"),
    "zeros in its code": (a_page_of_zeros, "has changed"),
    "an offset that no number of Python's C holds": (segments_out_of_reach, "has changed"),
    "other sources": (
        lambda content: sealed(unsealed(content).replace(sources_hash().encode(), b"0" * 16)),
        "other sources",
    ),
    "another machine": (for_another_machine, "cannot open shared object file|ELF"),
}


@pytest.mark.parametrize("which", [0, 1], ids=["packaged", "built"])
@pytest.mark.parametrize("how", SPOILED)
def test_an_unusable_library_is_named_in_one_warning(how, which, places, kernel_library, monkeypatch, caplog):
    spoil, reason = SPOILED[how]
    places[which].write_bytes(spoil(kernel_library.read_bytes()))
    monkeypatch.setattr(library, "_registered", None)
    steps()
    assert library.load() is None
    [record] = caplog.records
    message = record.getMessage()
    assert record.levelname == "WARNING"
    assert str(places[which]) in message
    assert re.search(reason, message), message
    assert "torch's own kernels instead" in message


@pytest.mark.parametrize("which", [0, 1], ids=["packaged", "built"])
@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_so_is_one_that_cannot_be_read(error, which, places, kernel_library, monkeypatch, caplog):
    def read_bytes(path, read=Path.read_bytes):
        if path == places[which]:
            raise error
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    steps()
    [record] = caplog.records
    assert f"{places[which]}: {error}" in record.getMessage()


def test_so_is_a_folder(places, caplog):
    places[0].mkdir()
    steps()
    [record] = caplog.records
    assert f"{places[0]}: [Errno 21] Is a directory" in record.getMessage()


@pytest.mark.parametrize("which", [0, 1], ids=["packaged", "built"])
def test_so_is_what_cannot_be_read_to_its_end(which, places, caplog):
    """A pipe without a writer; a file that would fill memory."""
    os.mkfifo(places[which])
    with places[1 - which].open("wb") as file:
        file.write(b"\x7fELF\2\1")
        file.truncate(1 << 40)
    steps()
    [record] = caplog.records
    assert record.getMessage().count("it is not a library") == 2


def test_one_that_torch_refuses_is_named(places, kernel_library, built_kernels, monkeypatch, caplog):
    """As where another library has taken the names of the operators."""
    places[0].write_bytes(kernel_library.read_bytes())
    monkeypatch.setattr(library, "_registered", None)
    steps()
    assert library.load() is None
    [record] = caplog.records
    assert "torch refused its operators" in record.getMessage()


def test_a_new_one_stands_in_for_an_unusable_one(places, kernel_library, built_kernels, caplog):
    """As the warning has advised: then it has nothing more to say."""
    places[0].write_bytes(b"")
    places[1].write_bytes(kernel_library.read_bytes())
    assert library.load() is built_kernels
    assert not caplog.records


@pytest.mark.parametrize("which", [0, 1], ids=["packaged", "built"])
def test_a_good_library_is_used_in_silence(which, places, kernel_library, built_kernels, caplog):
    places[which].write_bytes(kernel_library.read_bytes())
    assert library.load() is built_kernels
    assert not caplog.records


@pytest.mark.parametrize("folder", ["", os.devnull, "/no/such/folder"], ids=repr)
def test_where_none_was_built_nothing_is_said(folder, places, monkeypatch, caplog):
    monkeypatch.setenv("NOVOGRAD_KERNEL_DIR", folder)
    monkeypatch.setenv("XDG_CACHE_HOME", "/no/such/folder")
    steps()
    assert library.load() is None
    assert not caplog.records


def test_nobody_needs_a_home(places, monkeypatch, caplog):
    """In a container, a user may have neither a variable nor an entry in the list of users."""

    def getpwuid(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("NOVOGRAD_KERNEL_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", getpwuid)
    steps()
    assert library.load() is None
    assert not caplog.records


def test_kernels_can_be_switched_off(places, kernel_library, monkeypatch, caplog):
    places[0].write_bytes(kernel_library.read_bytes())
    monkeypatch.setenv("NOVOGRAD_KERNELS", "0")
    assert library.load() is None
    assert not caplog.records


def test_another_word_is_named_and_switches_nothing_off(places, kernel_library, monkeypatch, caplog):
    places[0].write_bytes(kernel_library.read_bytes())
    monkeypatch.setenv("NOVOGRAD_KERNELS", "off")
    assert library.load() is not None
    assert [record.getMessage() for record in caplog.records] == [
        "NOVOGRAD_KERNELS=off is none of 0, 1, require: the C++ kernels are used where they are found."
    ]


@pytest.mark.parametrize("word", ["sse9", "AVX2"])
def test_so_are_other_instructions(word, places, kernel_library, monkeypatch, caplog):
    places[0].write_bytes(kernel_library.read_bytes())
    monkeypatch.setenv("NOVOGRAD_KERNEL_INSTRUCTIONS", word)
    assert library.load() is not None
    [record] = caplog.records
    assert f"NOVOGRAD_KERNEL_INSTRUCTIONS={word} is none of avx512, avx2, portable" in record.getMessage()


@pytest.mark.parametrize("word", ["", "avx512", "avx2", "portable"])
def test_the_instructions_that_there_are_pass_in_silence(word, places, kernel_library, monkeypatch, caplog):
    places[0].write_bytes(kernel_library.read_bytes())
    monkeypatch.setenv("NOVOGRAD_KERNEL_INSTRUCTIONS", word)
    assert library.load() is not None
    assert not caplog.records


def test_a_library_that_a_packager_has_stripped_is_named(places, kernel_library, caplog):
    if not shutil.which("strip"):
        pytest.skip("needs strip: install binutils")
    places[0].write_bytes(kernel_library.read_bytes())
    subprocess.run(["strip", "--strip-unneeded", places[0]], check=True)
    steps()
    [record] = caplog.records
    assert "has changed since it was built, as by strip" in record.getMessage()


# ------------------------------------------------------------------------------------------------- what `status` says


@pytest.mark.parametrize("instructions", ["portable", pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("which", [pytest.param(0, id="packaged", marks=pytest.mark.slow), pytest.param(1, id="built")])
def test_status_of_a_good_library(which, instructions, places, kernel_library):
    places[which].write_bytes(kernel_library.read_bytes())
    said = status_in_a_new_process(places, instructions)
    kind = ["came with the package", "built on this machine"][which]
    assert re.fullmatch(rf"used, with (portable|avx2|avx512) instructions; {kind}: {places[which]}", said), said
    assert instructions is None or f"with {instructions} instructions" in said


@pytest.mark.parametrize("how", SPOILED)
def test_status_of_an_unusable_library(how, places, kernel_library, monkeypatch, caplog):
    spoil, reason = SPOILED[how]
    places[0].write_bytes(spoil(kernel_library.read_bytes()))
    monkeypatch.setattr(library, "_registered", False)
    said = library.status()
    assert said.startswith(f"not used: {places[0]}: ")
    assert re.search(reason, said), said
    assert said.endswith("; `python -m lightning_novograd.optim.kernels.cpu.build` builds new ones")
    assert "\n" not in said
    assert not caplog.records


def test_status_of_one_that_has_been_replaced(places, kernel_library, built_kernels):
    """In a process that has loaded another."""
    places[0].write_bytes(for_another_machine(kernel_library.read_bytes()))
    assert library.status() == f"used, with unknown instructions; came with the package: {places[0]}"


def test_status_without_a_library(places, monkeypatch, caplog):
    said = "not used: none came with the package or was built on this machine"
    advice = "; `python -m lightning_novograd.optim.kernels.cpu.build` builds them"
    assert library.status() == said + advice
    monkeypatch.setattr("sys.platform", "darwin")
    assert library.status() == f"{said}, which takes Linux"
    monkeypatch.setenv("NOVOGRAD_KERNELS", "0")
    assert library.status() == "not used: NOVOGRAD_KERNELS=0"
    assert not caplog.records


def test_where_the_sources_cannot_be_read(places, monkeypatch, caplog):
    def fails():
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(library, "sources_hash", fails)
    assert library.load() is None
    said = "the folder of built kernels: [Errno 13] Permission denied"
    assert said in caplog.records[0].getMessage()
    assert library.status().startswith(f"not used: {said}; ")


def test_status_without_a_home(places, monkeypatch):
    for name in ("NOVOGRAD_KERNEL_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    assert library.status().startswith("not used: none came with the package")


def test_status_builds_nothing(places, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("it compiles"))
    library.status()
    assert not any(place.exists() for place in places)


STATUS = """
import sys
from pathlib import Path
from lightning_novograd.optim.kernels.cpu import library
library.PACKAGED = Path(sys.argv[1])
print(library.status())
"""


def status_in_a_new_process(places, instructions):
    environment = {name: value for name, value in os.environ.items() if name != "NOVOGRAD_KERNEL_INSTRUCTIONS"}
    if instructions is not None:
        environment["NOVOGRAD_KERNEL_INSTRUCTIONS"] = instructions
    command = [sys.executable, "-c", STATUS, str(places[0])]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()
