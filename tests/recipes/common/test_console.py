"""What a run says: in one line, where it belongs, and nothing of what nobody can do anything about."""

import errno
import io
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.common import console
from lightning_novograd.recipes.common.console import (
    FILE_ONLY,
    fail,
    one_line,
    outlive_readers,
    set_up_console,
    shows_bar,
    write_to_log,
)
from lightning_novograd.recipes.common.folder import FAILURE

LOGGERS = (None, "lightning", "lightning.pytorch", "lightning.fabric", "py.warnings")


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    """One process; logging and warnings as they were."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "WORLD_SIZE", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger, logger.handlers[:], [(h, h.level, h.filters[:]) for h in logger.handlers]) for logger in loggers]
    filters = {name: logging.getLogger(name).filters[:] for name, _ in console._LINES}
    with warnings.catch_warnings():
        yield
    logging.captureWarnings(False)
    for logger, handlers, states in before:
        logger.handlers[:] = handlers
        for handler, level, kept in states:
            handler.level, handler.filters[:] = level, kept
    for name, kept in filters.items():
        logging.getLogger(name).filters[:] = kept


@pytest.fixture
def hydra(tmp_path):
    """Handlers as Hydra sets them up: `hydra("train")` -> the console's text so far, and the file."""

    def set_up(job: str):
        stream, root = io.StringIO(), logging.getLogger()
        root.handlers[:] = [logging.StreamHandler(stream), logging.FileHandler(tmp_path / f"{job}.log")]
        root.setLevel(logging.INFO)
        return stream, tmp_path / f"{job}.log"

    return set_up


def test_lines_for_the_file_are_not_on_the_console(hydra):
    stream, file = hydra("train")
    set_up_console()
    logging.getLogger("a").info("both")
    logging.getLogger("a").info("file", extra={FILE_ONLY: True})
    logging.getLogger("a").info("both too", extra={FILE_ONLY: False})
    assert stream.getvalue().split("\n") == ["both", "both too", ""]
    assert file.read_text().split("\n") == ["both", "file", "both too", ""]


@pytest.mark.parametrize(("job", "kept"), [("train_ddp_process_1", ["said", "wrong", ""]), ("train", ["wrong", ""])])
def test_other_ranks_are_quiet_except_for_errors(hydra, monkeypatch, job, kept):
    """A file of their own has everything; one that they share with the first rank has their errors."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    stream, file = hydra(job)
    set_up_console()
    logging.getLogger("a").info("said")
    logging.getLogger("a").error("wrong")
    assert stream.getvalue() == "wrong\n"
    assert file.read_text().split("\n") == kept
    warnings.warn("of a library", UserWarning, stacklevel=1)
    assert ("of a library" in file.read_text()) == (job != "train")
    assert "of a library" not in stream.getvalue()


def test_what_is_left_out_is_left_out_narrowly():
    set_up_console()
    modules = {
        "lightning.pytorch.utilities._pytree": "`isinstance(treespec, LeafSpec)` is deprecated, use ...",
        "lightning.pytorch.callbacks.model_checkpoint": "Checkpoint directory /a exists and is not empty.",
        "lightning.fabric.loggers.csv_logs": "Experiment logs directory /a exists and is not empty. Previous ...",
    }
    with warnings.catch_warnings(record=True) as shown:
        set_up_console()
        for module, message in modules.items():
            for where in (module, "mine"):
                for text in (message, "another"):
                    warnings.warn_explicit(text, UserWarning, "file.py", 1, module=where, registry={})
    assert [str(w.message) for w in shown] == [
        text for message in modules.values() for text in ("another", message, "another")
    ]


def test_an_advertisement_is_left_out(hydra):
    stream, _ = hydra("train")
    set_up_console()
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    parents = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch")]
    propagates = [parent.propagate for parent in parents]
    for parent in parents:
        parent.propagate = True
    logger.info("\N{ELECTRIC LIGHT BULB} Tip: buy this")
    logger.info("GPU available")
    for parent, value in zip(parents, propagates, strict=True):
        parent.propagate = value
    assert stream.getvalue() == "GPU available\n"


WORKER = (
    "Caught {kind} in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File ...\n{last}"
)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DataError("a.json:3: is bad"), "DataError: a.json:3: is bad"),
        (ConfigError("optim.lr", "is bad"), "ConfigError: optim.lr: is bad"),
        (
            DataError(WORKER.format(kind="DataError", last="lightning_novograd.errors.DataError: a.json:3: is bad\n")),
            "DataError: a.json:3: is bad",
        ),
        (
            DataError(
                WORKER.format(
                    kind="DataError",
                    last="lightning_novograd.errors.DataError: a.flac: is bad\n\nThe above exception was the direct\n"
                    'Traceback ...\n  raise DataError("m:1")\nlightning_novograd.errors.DataError: m:1: is bad\n',
                )
            ),
            "DataError: m:1: is bad",
        ),
        (DataError(WORKER.format(kind="DataError", last="what is this\n")), "DataError: what is this"),
        (DataError("2 lines are bad:\n  a\n  b"), "DataError: 2 lines are bad:\n  a\n  b"),
    ],
)
def test_a_worker_s_error_is_said_without_its_traceback(error, line):
    assert one_line(error) == line


def test_one_process_that_fails(hydra, tmp_path):
    _, file = hydra("train")
    with pytest.raises(SystemExit) as end:
        fail(DataError("is bad"), tmp_path)
    assert end.value.code == "DataError: is bad"
    assert file.read_text() == "DataError: is bad\n"
    assert not (tmp_path / FAILURE).exists()


def test_an_error_that_is_none_of_ours_keeps_its_traceback(hydra, tmp_path):
    _, file = hydra("train")
    error = ZeroDivisionError("division by zero")
    with pytest.raises(ZeroDivisionError) as caught:
        fail(error.with_traceback(raised().__traceback__), tmp_path)
    assert "Traceback (most recent call last)" in file.read_text()
    assert file.read_text().endswith("ZeroDivisionError: division by zero\n")
    assert caught.value is error


def raised() -> ZeroDivisionError:
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError as error:
        return error
    raise AssertionError


class Left(BaseException):
    """In the place of the end of the process."""


@pytest.fixture
def left(monkeypatch):
    def leave(status):
        raise Left(status)

    monkeypatch.setattr(console.os, "_exit", leave)
    monkeypatch.setattr(console.logging, "shutdown", lambda: None)
    monkeypatch.setattr(console, "PATIENCE", 0.1)


@pytest.mark.usefixtures("left")
def test_of_several_ranks_the_first_to_fail_speaks(tmp_path, monkeypatch, capsys):
    (tmp_path / "train.log").write_text("before\n")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    for error in (DataError("is bad"), DataError("is bad"), RuntimeError("Connection closed by peer")):
        with pytest.raises(Left, match="1"):
            fail(error, tmp_path)
    assert capsys.readouterr().err == "DataError: is bad\n"
    assert (tmp_path / "train.log").read_text() == "before\n[rank 1] DataError: is bad\n"


@pytest.mark.usefixtures("left")
def test_an_error_of_the_connection_waits_for_who_has_caused_it(tmp_path, monkeypatch, capsys):
    """A moment; then it is said itself, with its traceback."""
    monkeypatch.setattr(console.time, "sleep", lambda seconds: (tmp_path / FAILURE).touch())
    with pytest.raises(Left):
        fail(RuntimeError("Connection closed by peer"), tmp_path, many=True)
    assert capsys.readouterr().err == ""
    (tmp_path / FAILURE).unlink()
    monkeypatch.setattr(console.time, "sleep", lambda seconds: None)
    with pytest.raises(Left):
        fail(RuntimeError("out of memory"), tmp_path, many=True)
    assert capsys.readouterr().err == "RuntimeError: out of memory\n"


@pytest.mark.usefixtures("left")
def test_peers_that_wait_are_ended(tmp_path):
    asked = []

    def wait(timeout):
        asked.append(0 <= timeout <= 0.1)
        raise subprocess.TimeoutExpired("peer", timeout)

    peers = [SimpleNamespace(wait=wait, kill=lambda: asked.append("kill")) for _ in range(2)]
    with pytest.raises(Left):
        fail(DataError("is bad"), tmp_path, many=True, peers=peers)
    assert asked == [True, "kill"] * 2
    assert not list(tmp_path.iterdir())


def test_a_log_that_cannot_be_found(tmp_path, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    write_to_log("line", tmp_path)
    assert not list(tmp_path.iterdir())


OUTLIVES = """
import logging, sys, time
from pathlib import Path
from lightning_novograd.recipes.common.console import outlive_readers
outlive_readers()
outlive_readers()
logging.basicConfig(stream=sys.stdout, level=logging.INFO, handlers=None)
logging.info("first")
sys.stdin.readline()
for i in range(5):
    logging.info("more " * 5000)
    print("and more", flush=True)
Path(sys.argv[1]).write_text("went on")
"""


def test_a_reader_that_goes_away_ends_nothing(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", OUTLIVES, str(tmp_path / "end")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "INFO:root:first\n"
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate("go\n")
    assert (process.returncode, errors) == (0, "")
    assert (tmp_path / "end").read_text() == "went on"


@pytest.mark.parametrize(("number", "goes_on"), [(errno.ENOSPC, False), (errno.EIO, False), (errno.EAGAIN, True)])
def test_an_output_that_takes_nothing_ends_nothing(monkeypatch, tmp_path, number, goes_on):
    """A disk that is full, a terminal that is gone; a slow reader may catch up."""
    (tmp_path / "file").touch()
    with (tmp_path / "file").open("w") as file:
        refused = OSError(number, os.strerror(number))

        def refuse(*_):
            raise refused

        stream = SimpleNamespace(write=refuse, flush=refuse, fileno=file.fileno)
        monkeypatch.setattr(sys, "stdout", stream)
        outlive_readers()
        assert sys.stdout.write("text") == 4
        sys.stdout.flush()
        assert (Path(f"/proc/self/fd/{file.fileno()}").readlink() == Path(os.devnull)) != goes_on


@pytest.mark.parametrize(("wanted", "terminal"), [(True, True), (True, False), (False, True)])
def test_a_bar_is_for_terminals(monkeypatch, wanted, terminal):
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: terminal))
    assert shows_bar(wanted) == (wanted and terminal)
    monkeypatch.setattr(sys, "stdout", None)
    assert not shows_bar(wanted)


def test_streams_that_are_not_there(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    outlive_readers()
    assert sys.stdout is None
    print("a", file=sys.stderr, flush=True)
    assert stream.getvalue() == "a\n"
    assert Path(os.devnull).exists()


def ended_by(error: BaseException) -> SystemExit:
    """What Lightning raises on a signal."""
    if isinstance(error, KeyboardInterrupt):
        try:
            raise error
        except KeyboardInterrupt:
            try:
                sys.exit(1)
            except SystemExit as end:
                return end
    return error


@pytest.mark.parametrize(
    ("error", "code", "name"), [(SIGTERMException(), 143, "SIGTERM"), (KeyboardInterrupt(), 130, "Ctrl-C")]
)
@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_a_run_that_is_told_to_end_says_how_it_goes_on(tmp_path, caplog, error, code, name, has_checkpoint):
    newest = tmp_path / "checkpoints" / "step0000007.ckpt"
    if has_checkpoint:
        newest.parent.mkdir()
        for path, written in ((newest, 20), (newest.with_name("last.ckpt"), 10), (newest.with_name("best.ckpt"), 30)):
            path.touch()
            os.utime(path, (written, written))
    with pytest.raises(SystemExit) as end:
        console.stop(ended_by(error), tmp_path)
    assert end.value.code == code, "what shells and schedulers know; 0 would be a run that has finished"
    way = f"resume=auto goes on, from {newest}" if has_checkpoint else "no checkpoint was written yet"
    assert caplog.messages == [f"ended by {name}; {way}"]


def test_another_rank_says_nothing_of_it(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as end:
        console.stop(SIGTERMException(), tmp_path)
    assert (end.value.code, caplog.messages) == (143, [])


def test_any_other_end_stays_what_it_is(tmp_path):
    end = SystemExit("ConfigError: optim.lr")
    with pytest.raises(SystemExit) as raised:
        console.stop(end, tmp_path)
    assert raised.value is end
