"""Which rank is to blame, with a clock and processes that a test moves."""

import logging
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from lightning_novograd.recipes.common import console
from lightning_novograd.recipes.common.faults import processes, watchdog
from lightning_novograd.recipes.common.faults.board import Board
from lightning_novograd.recipes.common.faults.heartbeat import Heartbeat, Pulse
from lightning_novograd.recipes.common.faults.launch import LAUNCH
from lightning_novograd.recipes.common.faults.processes import GONE, RUNNING, STOPPED, Process, this_process
from lightning_novograd.recipes.common.faults.verdict import Lookout, RankError
from lightning_novograd.recipes.common.faults.watchdog import Watchdog, watched
from lightning_novograd.recipes.common.folder import FAILURE, RANKS, claimed_folder

BEFORE = time.time() - 3600


def pulse(rank: int, tick: int, count: int, doing: str = "at work", in_loop: bool = True) -> Pulse:
    return Pulse(rank, Process(100 + rank, 7, "machine", "host"), tick, count, in_loop, doing)


def both(tick: int, counts: tuple[int, int], **options) -> dict[int, Pulse]:
    return {rank: pulse(rank, tick, count, **options) for rank, count in enumerate(counts)}


def runs(process: Process) -> str:
    return RUNNING


def test_who_gives_no_sign_of_life():
    lookout = Lookout(timeout=10, pause=1)
    for now in range(20):
        lookout.see({0: pulse(0, now, now), 1: pulse(1, min(now, 5), 3, "in the backward pass")}, now)
        verdict = lookout.silent(now, runs)
        assert (verdict is not None) == (now - 5 > 10)
    assert verdict.culprit.rank == 1
    assert "no sign of life for 10 s (watchdog.timeout): it was killed or stopped" in verdict.problem
    assert verdict.problem.endswith("it was in the backward pass")
    assert "is stopped (by a SIGSTOP" in lookout.silent(19, lambda process: STOPPED).problem
    assert lookout.silent(19, runs, timeout=30) is None


def test_who_hangs_is_behind_the_others():
    lookout = Lookout(timeout=10, pause=1)
    for now in range(14):
        lookout.see({0: pulse(0, now, min(now, 4), "waiting"), 1: pulse(1, now, min(now, 3), "loading")}, now)
        assert (lookout.stuck(now) is not None) == (now - 4 > 10)
        now += 1
    lookout.see({0: pulse(0, 99, 4, "waiting"), 1: pulse(1, 99, 3, "loading")}, 15)
    verdict = lookout.stuck(15)
    assert verdict.culprit.rank == 1
    assert verdict.problem == ("has not got on for 10 s (watchdog.timeout): it is loading, and the others wait for it")


@pytest.mark.parametrize("moves", ["one moves", "outside of a loop"])
def test_what_is_no_hang(moves):
    lookout = Lookout(timeout=10, pause=1)
    for now in range(100):
        first = pulse(0, now, now if moves == "one moves" else 3, in_loop=moves == "one moves")
        lookout.see({0: first, 1: pulse(1, now, 3)}, now)
        assert lookout.stuck(now) is None
        assert lookout.silent(now, runs) is None


def test_all_at_the_same_place():
    lookout = Lookout(timeout=10, pause=1)
    for now in range(13):
        lookout.see(both(now, (3, 3)), now)
    assert "as all ranks are: their connection, or a shared disk" in lookout.stuck(12).problem


def test_the_time_in_which_this_process_was_stopped_counts_for_nobody():
    lookout = Lookout(timeout=10, pause=1)
    lookout.see(both(1, (3, 3)), 0)
    lookout.see(both(1, (3, 3)), 600)
    assert lookout.silent(600, runs) is None
    assert lookout.stuck(600) is None
    for now in range(601, 615):
        lookout.see(both(1, (3, 3)), now)
    assert lookout.silent(614, runs) is not None


def test_a_rank_that_has_left_is_not_missed():
    lookout = Lookout(timeout=10, pause=1)
    for now in range(5):
        lookout.see(both(now, (3, 3)), now)
    for now in range(5, 30):
        lookout.see({0: pulse(0, now, now)}, now)
    assert lookout.silent(29, runs) is None
    assert lookout.dead(lambda process: GONE if process.pid == 101 else RUNNING) is None


def test_signs_of_life_on_the_board(tmp_path):
    board = Board(tmp_path / RANKS)
    said = pulse(1, 3, 17, "loading the batch after batch 4")
    board.write(pulse(1, 2, 16, "x" * 5000))
    assert board.read([0, 1]) == {}  # too long to be whole
    board.write(said)
    assert board.read([0, 1]) == {1: said}
    with claimed_folder(tmp_path, None):  # what a job left that was killed
        assert board.read([1]) == {}
    board.write(said)
    board.leave(1)
    assert not (tmp_path / RANKS).exists()
    (tmp_path / "file").touch()
    Board(tmp_path / "file").write(said)  # a disk that refuses


def test_where_a_loop_is():
    trainer = SimpleNamespace(current_epoch=1, state=SimpleNamespace(fn="fit"))
    heart = Heartbeat()
    seen = [(heart.in_loop, heart.doing)]
    for hook, arguments in [
        ("on_train_start", ()),
        ("on_train_batch_start", (None, 4)),
        ("on_before_backward", (None,)),
        ("on_after_backward", ()),
        ("on_train_batch_end", (None, None, 4)),
        ("on_save_checkpoint", ({},)),
        ("on_validation_start", ()),
        ("on_validation_batch_end", (None, None, 2)),
        ("on_validation_end", ()),
        ("on_train_end", ()),
        ("on_test_start", ()),
        ("on_test_batch_end", (None, None, 0)),
        ("on_test_end", ()),
    ]:
        getattr(heart, hook)(trainer, None, *arguments)
        seen.append((heart.in_loop, heart.doing))
    assert heart.count == 13
    assert seen == [
        (False, "starting"),
        (True, "loading the first batch"),
        (True, "epoch 2, forward pass of batch 5"),
        (True, "epoch 2, backward pass of batch 5"),
        (True, "epoch 2, after the backward pass of batch 5"),
        (True, "epoch 2, loading the batch after batch 5"),
        (True, "writing a checkpoint, or loading the batch after it"),
        (True, "loading the first batch of the dev set"),
        (True, "validation, after batch 3"),
        (True, "after a validation"),
        (False, "after the training"),
        (True, "loading the first batch of the test set"),
        (True, "test, after batch 1"),
        (False, "after the test"),
    ]


def test_the_state_of_a_process():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        here = this_process()
        letter, started = processes._stat(child.pid)
        process = Process(child.pid, started, here.machine, here.host)
        if not here.machine:
            pytest.skip("the system does not say")
        assert letter
        assert processes.state_of(process) == RUNNING
        assert processes.state_of(process._replace(machine="another")) == ""
        assert processes.state_of(process._replace(started=started - 1)) == GONE
        processes.kill(process._replace(started=started - 1))
        processes.kill(here)
        os.kill(child.pid, signal.SIGSTOP)
        while processes.state_of(process) != STOPPED:
            pass
        processes.kill(process)
        assert child.wait() == -signal.SIGKILL
        assert processes.state_of(process) == GONE


@pytest.fixture
def two_ranks(monkeypatch, tmp_path):
    """The watchdog of the first of two ranks, with a clock of the test's; and the errors that end the job."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(LAUNCH, "id", "now")
    ended, clock, children = [], SimpleNamespace(now=0.0), []

    def end(error, culprit):
        ended.append((str(error), culprit))

    dog = Watchdog(Heartbeat(), tmp_path, 10.0, per_node=2, children=lambda: children, end=end, clock=lambda: clock.now)
    return SimpleNamespace(
        dog=dog, clock=clock, ended=ended, children=children, board=Board(LAUNCH.path(tmp_path, RANKS))
    )


def test_a_rank_that_is_silent_ends_the_job(two_ranks, monkeypatch):
    monkeypatch.setattr(watchdog, "state_of", runs)
    two_ranks.board.write(pulse(1, 1, 1))
    while not two_ranks.ended:
        two_ranks.clock.now += 0.5
        two_ranks.dog.look()
    [(text, culprit)] = two_ranks.ended
    assert text.startswith("rank 1 (process 101 on host) has given no sign of life for 10 s")
    assert culprit.pid == 101
    assert 10 <= two_ranks.clock.now <= 11.5


def test_a_rank_that_leaves_while_it_is_looked_at_has_not_died(two_ranks, monkeypatch):
    def gone(process):
        two_ranks.board.leave(1)
        return GONE if process.pid == 101 else RUNNING

    monkeypatch.setattr(watchdog, "state_of", gone)
    two_ranks.board.write(pulse(1, 1, 1))
    two_ranks.dog.look()
    assert not two_ranks.ended


def test_a_child_that_has_died(two_ranks):
    two_ranks.children += [SimpleNamespace(pid=5, poll=lambda: None), SimpleNamespace(pid=6, poll=lambda: 143)]
    two_ranks.dog.look()
    assert not two_ranks.ended, "one that was told to end, and does"
    two_ranks.children += [SimpleNamespace(pid=7, poll=lambda: -9), SimpleNamespace(pid=8, poll=lambda: 1)]
    two_ranks.dog.look()
    [(killed, _), (failed, _)] = two_ranks.ended
    assert "rank 3 (process 7 on " in killed
    assert "has died: it was ended by SIGKILL (by hand, or by the system for want of memory)" in killed
    assert failed.endswith("has died: it has ended with exit code 1")


def test_a_rank_leaves_when_another_has_spoken(two_ranks, tmp_path):
    LAUNCH.path(tmp_path, FAILURE).touch()
    two_ranks.dog.look()
    assert two_ranks.ended[0][0] == "another rank has failed"


def test_what_an_earlier_launch_has_left_ends_no_job(two_ranks, tmp_path, monkeypatch):
    """The first rank deletes it, on the disk that it sees, and perhaps after the others have looked."""
    monkeypatch.setattr(watchdog, "state_of", lambda process: GONE if process.pid == 101 else RUNNING)
    for earlier in (None, "then"):
        monkeypatch.setattr(LAUNCH, "id", earlier)
        Board(LAUNCH.path(tmp_path, RANKS)).write(pulse(1, 1, 1))
        LAUNCH.path(tmp_path, FAILURE).touch()
    for now in (None, "now"):
        monkeypatch.setattr(LAUNCH, "id", now)
        os.utime(tmp_path / FAILURE, (BEFORE, BEFORE))
        two_ranks.dog.look()
    assert not two_ranks.ended
    assert list(two_ranks.dog.lookout.sights) == [0]


def test_an_orphan_ends(two_ranks, monkeypatch):
    two_ranks.dog.look()
    monkeypatch.setattr(sys, "argv", ["train.py", "hydra.job.name=train_ddp_process_1"])
    two_ranks.dog.look()
    assert not two_ranks.ended
    monkeypatch.setattr(processes, "_FIRST_PARENT", -5)
    two_ranks.dog.look()
    assert two_ranks.ended[0][0].startswith("rank 0 (process -5 on ")


def test_without_a_timeout_only_deaths_count(tmp_path):
    dog = Watchdog(Heartbeat(), tmp_path, None, end=lambda *_: None)
    assert (dog.pause, dog.lookout.timeout) == (5.0, float("inf"))


def test_one_rank_is_not_watched(tmp_path):
    with pytest.raises(ZeroDivisionError), watched(SimpleNamespace(world_size=1), Heartbeat(), 1.0, tmp_path):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


class Left(BaseException):
    """In the place of the end of the process."""


def test_an_error_is_said_with_its_rank_and_the_culprit_is_killed(tmp_path, monkeypatch, capsys):
    def leave(status):
        raise Left(status)

    killed = []
    monkeypatch.setattr(console.os, "_exit", leave)
    monkeypatch.setattr(console.logging, "shutdown", lambda: None)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(console, "kill", killed.append)
    error = RankError("rank 1 has died")
    error.add_note("(rank 0)")
    with pytest.raises(Left):
        console.fail(error, tmp_path, many=True, culprit=this_process())
    assert capsys.readouterr().err == "RankError: rank 1 has died (rank 0)\n"
    assert killed == [this_process()]
