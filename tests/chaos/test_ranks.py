"""A rank that dies, is stopped, hangs or raises ends the whole job soon, and is named; nothing of the job is left."""

import os
import re
import signal
import time

import pytest
from jobs import LAUNCHERS, START, Job, is_free, long_run
from speech_files import write_corpus

TIMEOUT = 6  # s, watchdog.timeout of these runs
MARGIN = 20  # s beyond it: the end of loader workers is looked for every 5 s, and machines are busy
NAMES = {"lightning": "Lightning", "torchrun": "torchrun", "slurm": "SLURM's variables"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), "train", 16)


def over(job: Job, faults, launcher: str, fault: str, said: str, timeout: float = 0) -> str:
    """What was printed, once the job is over and has left nothing."""
    seconds = job.wait_until_over()
    printed = job.said()
    assert re.search(said, printed), printed
    assert seconds < timeout + MARGIN
    assert all(job.codes())
    assert is_free(job.port)
    checkpoints = list(job.run_dir.glob("checkpoints/*.ckpt"))
    assert checkpoints
    line = re.search(rf".*(?:{said}).*", printed)
    faults(fault, NAMES[launcher], line[0], seconds)
    return printed


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_rank_that_is_killed(corpus, tmp_path, faults, launcher, rank):
    with Job(launcher, tmp_path, long_run(corpus, "data.num_workers=1")) as job:
        pids = job.wait_until_it_trains()
        os.kill(pids[rank], signal.SIGKILL)
        over(job, faults, launcher, f"kill -9 of rank {rank}", rf"rank {rank} \(process {pids[rank]} on .*\) has died")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_rank_that_is_stopped(corpus, tmp_path, faults, launcher, rank):
    options = long_run(corpus, f"watchdog.timeout={TIMEOUT}", "data.num_workers=0")
    with Job(launcher, tmp_path, options) as job:
        pids = job.wait_until_it_trains()
        os.kill(pids[rank], signal.SIGSTOP)
        said = rf"rank {rank} \(process {pids[rank]} on .*\) is stopped .* no sign of life for {TIMEOUT} s"
        over(job, faults, launcher, f"SIGSTOP of rank {rank}", said, TIMEOUT)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_a_rank_that_hangs_while_it_loads(corpus, tmp_path, faults, launcher, rank):
    options = long_run(corpus, f"watchdog.timeout={TIMEOUT}", "data.num_workers=0")
    with Job(launcher, tmp_path, options, "hang", rank) as job:
        pids = job.wait_until_it_trains()
        (tmp_path / "go").touch()
        said = (
            rf"rank {rank} \(process {pids[rank]} on .*\) has not got on for {TIMEOUT} s .*: it is "
            r"(.*loading the|after a validation)"
        )
        over(job, faults, launcher, f"rank {rank} hangs in its data loader", said, TIMEOUT)


@pytest.mark.parametrize(("launcher", "rank"), [("lightning", 0), ("lightning", 1), ("torchrun", 1), ("slurm", 1)])
def test_a_rank_that_raises(corpus, tmp_path, faults, launcher, rank):
    with Job(launcher, tmp_path, long_run(corpus, "data.num_workers=0"), "raise", rank) as job:
        pids = job.wait_until_it_trains()
        (tmp_path / "go").touch()
        said = rf"ZeroDivisionError: planted\n\(rank {rank}, process {pids[rank]} on "
        printed = over(job, faults, launcher, f"rank {rank} raises", said)
        assert "Connection closed" not in printed


def test_the_first_rank_requeues_before_any_other_ends(corpus, tmp_path, faults, monkeypatch):
    """As under ``srun --kill-on-bad-exit=1``, with a scontrol that takes its time."""
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "scontrol"
    tool.write_text(f'#!/bin/sh\nsleep 3\necho "$@" > "{tmp_path}/asked"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    with Job("slurm", tmp_path, long_run(corpus, "data.num_workers=0")) as job:
        for pid in job.wait_until_it_trains():
            os.kill(pid, signal.SIGUSR1)
        began = time.monotonic()
        while any(process.poll() is None for process in job.processes):
            assert time.monotonic() - began < 60, job.said()
            if any(process.poll() for process in job.processes):
                for process in job.processes:
                    process.kill()
            time.sleep(0.005)
        seconds = time.monotonic() - began
        assert job.codes()[0] == 128 + signal.SIGUSR1
        assert (tmp_path / "asked").read_text() == "requeue 7\n"
        assert (job.run_dir / "hpc_ckpt_1.ckpt").exists()
        line = re.search(r".*ended by SIGUSR1; resume=auto goes on, from .*hpc_ckpt_1.ckpt", job.said())
        faults("SIGUSR1 from SLURM", NAMES["slurm"], line[0], seconds)


def test_torchrun_itself_is_killed(corpus, tmp_path, faults):
    with Job("torchrun", tmp_path, long_run(corpus, "data.num_workers=0")) as job:
        job.wait_until_it_trains()
        agent = job.processes[0].pid
        os.kill(agent, signal.SIGKILL)
        over(job, faults, "torchrun", "kill -9 of torchrun", rf"torchrun \(process {agent} on .*\) has died")


def test_a_stopped_rank_does_not_outlive_the_first(corpus, tmp_path, faults):
    with Job("lightning", tmp_path, long_run(corpus, "data.num_workers=1")) as job:
        first, second = job.wait_until_it_trains()
        os.kill(second, signal.SIGSTOP)
        os.kill(first, signal.SIGKILL)
        # rank 1 says what it sees first: that its launcher has gone, or that this rank's process has
        said = rf"rank 0 \(process {first} on .*\) has died"
        over(job, faults, "lightning", "SIGSTOP of rank 1, then kill -9 of rank 0", said)


def test_a_pause_of_the_whole_job_is_no_hang(corpus, tmp_path):
    options = long_run(corpus, "watchdog.timeout=2", "data.num_workers=0")
    with Job("lightning", tmp_path, options) as job:
        pids = job.wait_until_it_trains()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        signal.sigtimedwait([], 5)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        signal.sigtimedwait([], 5)
        assert set(pids) <= set(job.left()), job.said()


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_rank_that_does_not_see_the_newest_checkpoint(corpus, tmp_path, faults, launcher):
    """As on a shared disk that tells one machine later than another (NFS)."""
    options = long_run(corpus, "data.num_workers=0", "resume=auto")
    with Job(launcher, tmp_path, options) as job:
        for pid in job.wait_until_it_trains():
            os.kill(pid, signal.SIGKILL)
        job.wait_until_over()
        reached = {path: path.read_bytes() for path in job.run_dir.glob("checkpoints/*.ckpt")}
    again = tmp_path / "again"
    again.mkdir()
    with Job(launcher, again, options, "behind", 1, run_dir=job.run_dir) as job:
        job.wait_until_over(START)
        said = r"DataError: rank 0 goes on from .*\.ckpt \(optimizer step \d+\), and rank 1 begins anew.*"
        line = re.search(said, job.said())
        assert line, job.said()
        assert all(job.codes())
        faults("rank 1 does not see the newest checkpoint", NAMES[launcher], line[0], None)
        assert {path: path.read_bytes() for path in job.run_dir.glob("checkpoints/*.ckpt")} == reached
