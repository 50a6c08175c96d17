"""What commands write: no bystander is touched, and only stdout's own troubles are stdout's."""

import contextlib
import io
import os
import stat
import subprocess
import sys
import threading

import pytest

from lightning_novograd.commands.output import whole_file, writes_to_stdout
from lightning_novograd.errors import ConfigError


def write(out, text="new"):
    with whole_file(out) as partial:
        partial.write_text(text)


def tree(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("fails", [False, True], ids=["written", "failing"])
def test_nothing_beside_the_file_is_touched(fails, tmp_path):
    bystanders = {name: "precious" for name in ("model.partial.pt", "model.pt.partial", ".model.pt", "model.pt~")}
    for name, text in bystanders.items():
        (tmp_path / name).write_text(text)
    with contextlib.suppress(ZeroDivisionError), whole_file(tmp_path / "model.pt") as partial:
        partial.write_text("new")
        assert partial.suffix == ".pt", "which chooses a picture's format"
        if fails:
            raise ZeroDivisionError
    assert tree(tmp_path) == (bystanders if fails else {**bystanders, "model.pt": "new"})


def test_a_name_that_fits_is_written(tmp_path):
    write(tmp_path / ("x" * 252 + ".pt"))
    assert len(tree(tmp_path)) == 1


def test_the_file_may_be_read_by_whom_other_files_may(tmp_path):
    (tmp_path / "other").touch()
    write(tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


@pytest.mark.parametrize("there", [False, True], ids=["dangling", "old"])
def test_a_link_is_written_through(there, tmp_path):
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "target.pt"
    if there:
        target.write_text("old")
    (tmp_path / "link.pt").symlink_to(target)
    write(tmp_path / "link.pt")
    assert (tmp_path / "link.pt").is_symlink()
    assert tree(tmp_path / "real") == {"target.pt": "new"}


def test_a_link_to_nowhere_and_one_in_a_circle_are_named(tmp_path):
    for name, target in (("nowhere", "no/folder/file"), ("circle", "circle")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(ConfigError, match=f"{name}: cannot be written"):
            write(tmp_path / name)
        assert (tmp_path / name).is_symlink()


def test_a_pipe_stays_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_text()), daemon=True)
    reader.start()
    write(tmp_path / "pipe")
    reader.join(10)
    assert found == ["new"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_two_that_write_the_same_file_do_not_mix(tmp_path):
    with whole_file(tmp_path / "out") as one, whole_file(tmp_path / "out") as other:
        one.write_text("one")
        other.write_text("other")
    assert tree(tmp_path) == {"out": "one"}


# --- stdout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stdout", [io.TextIOWrapper(io.BytesIO()), io.StringIO(), None], ids=["bytes", "text", "none"])
@pytest.mark.parametrize("error", [OSError("sndfile library not found"), BrokenPipeError(32, "Broken pipe")], ids=repr)
def test_what_is_not_stdouts_fault_is_not_laid_to_it(error, stdout, monkeypatch):
    """As of a library that is missing, or of a DataLoader's worker that has died."""

    @writes_to_stdout
    def main():
        raise error

    monkeypatch.setattr(sys, "stdout", stdout)
    with pytest.raises(OSError) as raised:  # noqa: PT011
        main()
    assert raised.value is error
    assert sys.stdout is stdout


@pytest.mark.parametrize("stdout", [io.StringIO(), None], ids=["text", "none"])
def test_any_stdout_will_do(stdout, monkeypatch):
    monkeypatch.setattr(sys, "stdout", stdout)
    assert writes_to_stdout(lambda: print("said") or 3)() == 3
    assert stdout is None or stdout.getvalue() == "said\n"


class Full(io.StringIO):
    """No file of the system: it has no descriptor."""

    def write(self, text):
        raise OSError(28, "No space left on device")


def test_a_stdout_of_its_own_kind_may_fail_too(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Full())
    assert writes_to_stdout(lambda: print("said"))() == 2
    assert capsys.readouterr().err == "error: stdout cannot be written: No space left on device\n"


AGAIN = """
import os, sys
from lightning_novograd.commands.output import writes_to_stdout
main = writes_to_stdout(lambda: print("said") or 0)
descriptors, before = len(os.listdir("/proc/self/fd")), os.fstat(1)
statuses = {main() for _ in range(5)}
assert len(os.listdir("/proc/self/fd")) == descriptors
assert os.path.sameopenfile(1, 1) and os.fstat(1).st_ino == before.st_ino, "stdout is another file"
sys.exit(statuses.pop() if len(statuses) == 1 else 1)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize("full", [True, False], ids=["full", "closed"])
def test_a_program_that_calls_a_command_keeps_its_descriptors(full):
    if full:
        writer = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, writer = os.pipe()
        os.close(reader)
    done = subprocess.run([sys.executable, "-c", AGAIN], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    said = "error: stdout cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == ((2, said * 5) if full else (141, ""))


def test_a_reader_of_the_help_that_has_gone_ends_it_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "lightning_novograd", "describe", "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
