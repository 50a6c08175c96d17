"""kill -9 at any moment: a resumed run ends bit for bit as the one that nobody interrupted."""

import os
import random
import signal
import threading
import time

import pytest
from killed_runs import UTTERANCES, Attempt, Kill, differences, killing, options, outcome
from speech_files import write_corpus

RESUME = "resume=auto"
# of one run on one rank, in which the last of each comes shortly before its end
MOMENTS = {
    "batch": 36,  # both micro-batches of a step
    "forward": 36,
    "window": 18,
    "batch end": 36,
    "half written": 18,  # of nine inside the epochs, and three for each of three epochs
    "synced": 36,
    "removed": 3,
    "validation batch": 15,
    "validation end": 3,
    "epoch end": 3,
    "row": 40,
    "train end": 1,
    "measured batch": 5,
}


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def whole(request, tmp_path_factory):
    """Ranks, config and outcome of the run that nobody interrupts, and how long it takes, s."""
    folder = tmp_path_factory.mktemp("whole")
    overrides = [*options(write_corpus(folder / "corpus", "all", UTTERANCES), request.param), RESUME]
    began = time.monotonic()
    attempt = Attempt(folder / "run", overrides, ranks=request.param)
    assert attempt.wait() == [0] * request.param, attempt.said()
    return request.param, overrides, outcome(folder / "run"), time.monotonic() - began


def drawn(ranks: int) -> list[Kill]:
    """Seven moments of each kind of place, the same ones in every run of this test."""
    draw = random.Random(f"kills of {ranks}")
    kinds = ["batch", "batch end", "half written", "validation batch", *draw.sample(sorted(MOMENTS), 3)]
    # rank 0 alone writes; and two ranks share the batches of a validation
    writes = ("half written", "synced", "removed", "row")
    return [
        Kill(kind, draw.randint(1, MOMENTS[kind] // (ranks if "validation batch" in kind else 1)), rank)
        for kind in kinds
        for rank in [0 if kind in writes else draw.randrange(ranks)]
    ]


@pytest.mark.parametrize("number", range(7))
def test_a_kill_at_a_named_moment(whole, tmp_path, kills, number):
    ranks, overrides, expected, _ = whole
    kill = drawn(ranks)[number]
    attempt = Attempt(tmp_path, overrides, killing(kill), ranks=ranks)
    assert -signal.SIGKILL in attempt.wait(), f"{kill} never came: {attempt.said()}"
    resumed = Attempt(tmp_path, overrides, ranks=ranks)
    codes = resumed.wait()
    found = differences(expected, outcome(tmp_path)) if codes == [0] * ranks else [resumed.said()[-3000:]]
    kills(1, not found)
    assert not found, kill


@pytest.mark.parametrize("number", range(3))
def test_kills_at_any_time(whole, tmp_path, kills, number):
    """From outside, in the middle of whatever the processes do; three attempts, or until one has ended by itself."""
    ranks, overrides, expected, seconds = whole
    draw = random.Random(f"times {ranks} {number}")
    killed = 0
    for _ in range(3):
        attempt = Attempt(tmp_path, overrides, ranks=ranks)
        timer = threading.Timer(draw.uniform(0.1, 0.8) * seconds, attempt.kill)
        timer.start()
        codes = attempt.wait()
        timer.cancel()
        if codes == [0] * ranks:
            break
        killed += -signal.SIGKILL in codes
    assert killed, f"ended in less than {seconds:.1f} s, as no run had before"
    resumed = Attempt(tmp_path, overrides, ranks=ranks)
    codes = resumed.wait()
    found = differences(expected, outcome(tmp_path)) if codes == [0] * ranks else [resumed.said()[-3000:]]
    kills(killed, not found)
    assert not found, f"after {killed} kills"


@pytest.mark.parametrize(
    ("name", "moment", "count"),
    [
        ("SIGTERM", "batch", 15),
        ("SIGINT", "batch end", 16),
        ("SIGUSR1", "epoch end", 1),
        ("SIGTERM", "validation batch", 6),
    ],
)
def test_a_signal_ends_all_ranks_between_two_steps(whole, tmp_path, name, moment, count):
    """One rank alone gets it, the last one."""
    ranks, overrides, expected, _ = whole
    number, seen, at = getattr(signal, name), [], []

    def act(rank, now):
        seen.append(now)
        if rank == ranks - 1 and now == moment and seen.count(now) == count // (ranks if "val" in moment else 1):
            os.kill(os.getpid(), number)
            (tmp_path / "came").touch()

    attempt = Attempt(tmp_path, overrides, act, ranks=ranks)
    codes = attempt.wait()
    at.append(time.time())
    # a rank that Lightning's launcher would have started ends without an error: else it kills the first one
    assert codes == [128 + number, 0][:ranks], attempt.said()[-3000:]
    assert at[0] - (tmp_path / "came").stat().st_mtime < 10
    assert list((tmp_path / "checkpoints").glob("step*.ckpt"))
    resumed = Attempt(tmp_path, overrides, ranks=ranks)
    assert resumed.wait() == [0] * ranks, resumed.said()[-3000:]
    assert not differences(expected, outcome(tmp_path))
