"""Several at once, one lock, and how far they are."""

import io
import threading

import pytest
from filelock import FileLock

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.data.download import parallel
from lightning_novograd.recipes.asr.data.download import progress as progress_module
from lightning_novograd.recipes.asr.data.download.lock import locked
from lightning_novograd.recipes.asr.data.download.parallel import run_all, stop_if
from lightning_novograd.recipes.asr.data.download.progress import progress


def test_the_first_failure_stops_the_others_and_is_the_one_that_is_raised():
    running = threading.Barrier(2, timeout=20)
    begun = []

    def work(item, stop):
        begun.append(item)
        if item > 1:
            return
        running.wait()
        if item == 1:
            raise DataError("the second")
        assert stop.wait(20)
        stop_if(stop)

    with pytest.raises(DataError, match="the second"):
        run_all(work, [0, 1], jobs=2)
    assert begun == [0, 1]


def test_what_has_not_begun_does_not_begin():
    begun = []

    def work(item, stop):
        begun.append(item)
        raise DataError(str(item))

    with pytest.raises(DataError, match="0"):
        run_all(work, range(100), jobs=1)
    assert len(begun) < 100


def test_at_once():
    together = threading.Barrier(3, timeout=20)
    assert run_all(lambda item, stop: together.wait() >= 0 and item, [1, 2, 3], jobs=3) == [1, 2, 3]


def test_a_lock_is_waited_for(tmp_path):
    entered, done = threading.Event(), []

    def other():
        with locked(tmp_path / "new" / ".lock"):
            done.append("other")

    with locked(tmp_path / "new" / ".lock"):
        thread = threading.Thread(target=other)
        thread.start()
        assert not entered.wait(0.05)
        assert done == []
        done.append("first")
    thread.join(20)
    assert done == ["first", "other"]
    FileLock(tmp_path / "new" / ".lock").acquire(timeout=0).lock.release()


def test_there_can_be_no_lock(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"\.lock cannot be made: "), locked(tmp_path / "file" / ".lock"):
        pytest.fail("it was locked")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_where_there_is_no_terminal(monkeypatch):
    written, now = io.StringIO(), iter(range(0, 1000, 20))
    monkeypatch.setattr(progress_module.sys, "stderr", written)
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(now))
    with progress("a.tar.gz", 10_000_000, done=2_000_000) as task:
        for _ in range(4):
            task.advance(1_000_000)  # 20 s each
    assert written.getvalue().splitlines() == [
        "a.tar.gz: 4.00MB of 10.0MB (40 %), 50.0kB/s, 02:00 left",
        "a.tar.gz: 6.00MB of 10.0MB (60 %), 50.0kB/s, 01:20 left",
    ]


def test_a_bar_on_a_terminal(monkeypatch):
    written = Terminal()
    monkeypatch.setattr(progress_module.sys, "stderr", written)
    with progress("a.tar.gz", 100) as task:
        task.advance(50)
    assert "a.tar.gz:   0%" in written.getvalue()
    assert written.getvalue().endswith("\r"), "the bar is gone at the end"


def test_ctrl_c_stops_those_that_run(monkeypatch):
    running, stopped = threading.Event(), []

    def interrupted(*args, **kwargs):
        assert running.wait(20)
        raise KeyboardInterrupt

    def work(item, stop):
        running.set()
        stopped.append(stop.wait(20))

    monkeypatch.setattr(parallel, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_all(work, range(10), jobs=1)
    assert stopped == [True]
