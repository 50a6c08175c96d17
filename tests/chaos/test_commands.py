"""Commands as users, shells and schedulers start them: signals to some of their processes, and starts over."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from killed_runs import UTTERANCES, options
from speech_files import write_corpus

TRAIN = ROOT / "recipes" / "asr" / "train.py"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
# long enough to be met in the middle
LONGER = ["trainer.max_epochs=6", "resume=auto"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Overrides of a run on two ranks, and its end where nobody interrupts it."""
    folder = tmp_path_factory.mktemp("whole")
    overrides = [*options(write_corpus(folder / "corpus", "all", UTTERANCES), ranks=2), *LONGER]
    process = start(folder / "run", overrides)
    assert process.wait(240) == 0, said(folder / "run")
    return overrides, final(folder / "run")


def start(run_dir: Path, overrides, launcher=()) -> subprocess.Popen:
    """The command, in a process group of its own, as of a shell."""
    run_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, *launcher, str(TRAIN), *overrides, f"hydra.run.dir={run_dir}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (run_dir / "said.txt").open("a") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, env=environment)


def said(run_dir: Path) -> str:
    return (run_dir / "said.txt").read_text()[-4000:]


def final(run_dir: Path):
    last = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    results = json.loads((run_dir / "results.json").read_text())
    return last, {name: results[name] for name in ("dev_wer", "dev_cer", "test_wer", "optimizer_steps")}


def assert_same(ours, theirs):
    assert ours[1] == theirs[1]
    for key in ("state_dict", "current_model_state"):
        for name, value in theirs[0][key].items():
            assert torch.equal(ours[0][key][name], value), (key, name)
    for name, state in theirs[0]["optimizer_states"][0]["state"].items():
        for key, value in state.items():
            found = ours[0]["optimizer_states"][0]["state"][name][key]
            assert torch.equal(torch.as_tensor(found), torch.as_tensor(value)), (name, key)


def wait_for_steps(run_dir: Path, process: subprocess.Popen, step: int) -> None:
    """Until a checkpoint of this step or a later one is there."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(int(path.stem[4:]) >= step for path in run_dir.glob("checkpoints/step???????.ckpt")):
            return
        time.sleep(0.02)
    raise AssertionError(f"no step {step}: {said(run_dir)}")


def below(parent: int) -> list[int]:
    """Processes of a command, children of children too."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(path.parent.name)] = int(fields[1])
    found = [parent]
    for pid in found:
        found += [child for child, its in parents.items() if its == pid]
    return found[1:]


def assert_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 15  # loaders look for their parents every 5 s
    while any(map(is_there, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in pids if is_there(pid)]


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("name", "to_all", "code"),
    [("SIGTERM", False, 143), ("SIGINT", True, 130), ("SIGTERM", True, 143), ("SIGUSR1", False, 138)],
)
def test_a_signal_to_the_command_or_to_all_its_processes(whole, tmp_path, name, to_all, code):
    """Of a scheduler to its first process; of a terminal, or of SLURM, to all of them, loaders included."""
    overrides, expected = whole
    process = start(tmp_path, overrides)
    wait_for_steps(tmp_path, process, 8)
    sent, started = time.monotonic(), below(process.pid)
    number = getattr(signal, name)
    if to_all:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    assert process.wait(30) == code, said(tmp_path)
    assert time.monotonic() - sent < 15
    assert_gone(started)
    assert f"ended by {name}; resume=auto goes on, from " in said(tmp_path)
    assert "Traceback" not in said(tmp_path)
    again = start(tmp_path, overrides)
    assert again.wait(240) == 0, said(tmp_path)
    assert_same(final(tmp_path), expected)


def test_the_same_command_goes_on_where_a_rank_was_killed(whole, tmp_path):
    """Under torchrun, whose agent ends the other rank."""
    overrides, expected = whole
    process = start(tmp_path, overrides, TORCHRUN)
    wait_for_steps(tmp_path, process, 8)
    started = below(process.pid)
    os.kill(started[1], signal.SIGKILL)  # a child comes before the children of children
    assert process.wait(90) != 0
    assert_gone(started)
    again = start(tmp_path, overrides, TORCHRUN)
    assert again.wait(240) == 0, said(tmp_path)
    assert (tmp_path / "train.log").read_text().count("resume=auto goes on from") == 1
    assert "another config" not in (tmp_path / "train.log").read_text()
    assert_same(final(tmp_path), expected)


def test_torchrun_passes_a_schedulers_signal_on(whole, tmp_path):
    overrides, expected = whole
    process = start(tmp_path, overrides, TORCHRUN)
    wait_for_steps(tmp_path, process, 8)
    started = below(process.pid)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0
    assert "ended by SIGTERM; resume=auto goes on, from " in said(tmp_path)
    assert_gone(started)
    again = start(tmp_path, overrides, TORCHRUN)
    assert again.wait(240) == 0, said(tmp_path)
    assert_same(final(tmp_path), expected)
