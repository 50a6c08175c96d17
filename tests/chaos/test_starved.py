"""A disk that is full, a folder that cannot be written, a corpus that vanishes, NaN: an error in a line, or a count."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from jobs import Job, long_run
from speech_files import write_corpus

NOTHING_LEFT = 30  # s


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), "train", 16)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 40 MB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def over(job: Job, faults, fault: str, said: str) -> str:
    """What was printed, once the job is over: one line with the error, and no traceback."""
    seconds = job.wait_until_over(NOTHING_LEFT)
    printed = job.said()
    line = re.search(said, printed, re.MULTILINE)
    assert line, printed
    assert "Traceback" not in printed, printed
    assert all(job.codes())
    whole_line = next(text for text in printed.splitlines() if line[0].splitlines()[0] in text)
    faults(fault, f"{job.ranks} rank{'s' * (job.ranks > 1)}", whole_line, seconds)
    return printed


def assert_goes_on(job: Job, *more: str) -> None:
    """The same command with resume=auto, once what was missing is there again, trains on from the newest checkpoint."""
    reached = max(whole_checkpoints(job))
    assert reached >= 2
    options = [word for word in job.overrides if "max_epochs" not in word]
    again = job.folder / "again"
    again.mkdir()
    longer = [*options, *more, "resume=auto", f"trainer.max_steps={reached + 3}", "trainer.max_epochs=-1"]
    with Job("lightning", again, longer, ranks=job.ranks, run_dir=job.run_dir) as resumed:
        resumed.wait_until_over(120)
        assert resumed.codes() == [0], resumed.said()
        assert f"resume=auto goes on from {job.run_dir / 'checkpoints'}" in resumed.said()
        assert json.loads((job.run_dir / "results.json").read_text())["optimizer_steps"] == reached + 3
    assert not list(job.run_dir.glob("checkpoints/.*.partial")), "which a disk that takes nothing may have kept"


def whole_checkpoints(job: Job) -> list[int]:
    """Steps of all checkpoints, each of which can be read."""
    files = list(job.run_dir.glob("checkpoints/*.ckpt"))
    return [torch.load(file, weights_only=True)["global_step"] for file in files]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_full_disk(corpus, small_disk, faults, ranks):
    with Job("lightning", small_disk, long_run(corpus, "data.num_workers=0"), ranks=ranks) as job:
        job.wait_until_it_trains()
        with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(1 << 12)):
                pass
        said = r"cannot be written: No space left on device \(resume=auto goes on, from .*/(step\d+|last).ckpt\)"
        over(job, faults, "the disk of the run folder is full", said)
        (small_disk / "filler").unlink()
        assert_goes_on(job)


@pytest.mark.parametrize("ranks", [1, 2])
def test_checkpoints_that_cannot_be_written_any_more(corpus, tmp_path, faults, ranks):
    """As of a disk that the system has taken for damaged, or an account over its quota."""
    options = long_run(corpus, "data.num_workers=0")
    with Job("lightning", tmp_path, options, ranks=ranks, obeys_modes=True) as job:
        job.wait_until_it_trains()
        (job.run_dir / "checkpoints").chmod(0o555)
        said = r"\.ckpt cannot be written: Permission denied \(resume=auto goes on, from .*/(step\d+|last).ckpt\)"
        over(job, faults, "the folder of the checkpoints becomes read-only", said)
        (job.run_dir / "checkpoints").chmod(0o755)
        assert_goes_on(job)


def test_a_folder_that_cannot_be_written(corpus, small_disk, faults):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with Job("lightning", small_disk.parent, long_run(corpus), ranks=1, run_dir=small_disk / "run") as job:
        said = r"^ConfigError: hydra.run.dir: .* cannot be written: Read-only file system$"
        over(job, faults, "the run folder is on a disk that can only be read", said)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_corpus_that_vanishes(tmp_path, faults, ranks):
    corpus = write_corpus(tmp_path / "corpus", "train", 16)
    with Job("lightning", tmp_path, long_run(corpus, "data.num_workers=1"), ranks=ranks) as job:
        job.wait_until_it_trains()
        shutil.rmtree(tmp_path / "corpus" / "audio")
        over(job, faults, "recordings are deleted", r"DataError: .*train.json:\d+: audio file .* does not exist")
        assert max(whole_checkpoints(job)) >= 2


def test_a_corpus_that_vanishes_and_is_cached(tmp_path, faults):
    corpus = write_corpus(tmp_path / "corpus", "train", 16)
    options = [*long_run(corpus, "data.num_workers=1", "data.cache_audio=true", f"data.cache_dir={tmp_path}/cache")]
    options = [word.replace("max_epochs=100000", "max_epochs=20") for word in options]
    with Job("lightning", tmp_path, options, ranks=1) as job:
        job.wait_until_it_trains()
        shutil.rmtree(tmp_path / "corpus" / "audio")
        seconds = job.wait_until_over(120)
        # training goes on from the cache; the test set is looked at when its turn comes
        printed = job.said()
        assert "epoch 20/20" in printed
        line = re.search(r"DataError: .*\n?.*", printed)
        assert line, printed
        assert "Traceback" not in printed
        faults("recordings are deleted, data.cache_audio=true", "1 rank", line[0], seconds)


@pytest.mark.parametrize("action", ["raise", "skip"])
def test_nan_on_one_rank(corpus, tmp_path, faults, action):
    options = long_run(corpus, "data.num_workers=0", f"nonfinite.action={action}", "nonfinite.max_consecutive=3")
    with Job("lightning", tmp_path, options, "nan", 1) as job:
        job.wait_until_it_trains()
        (tmp_path / "go").touch()
        said = r"DivergenceError: optimizer step|DivergenceError: 4 optimizer steps in a row are not finite"
        printed = over(job, faults, f"NaN in samples of rank 1, nonfinite.action={action}", said)
        assert re.search(r"train\.json:\d+", printed)
        left_out = re.findall(r"the step is left out \((\d) so far, (\d) in a row\)", printed)
        assert left_out == ([(str(i), str(i)) for i in (1, 2, 3)] if action == "skip" else [])
        states = [torch.load(file, weights_only=True)["state_dict"] for file in job.run_dir.glob("checkpoints/*.ckpt")]
        assert all(bool(v.isfinite().all()) for state in states for v in state.values() if v.is_floating_point())


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_loader_worker_that_is_killed(corpus, tmp_path, faults, ranks):
    """As by the system, where memory is short."""
    with Job("lightning", tmp_path, long_run(corpus, "data.num_workers=1"), ranks=ranks) as job:
        trainers = job.wait_until_it_trains()
        worker = next(pid for pid in job.left() if parent(pid) == trainers[-1])
        os.kill(worker, signal.SIGKILL)
        said = rf"WorkerError: a worker of a data loader \(process {worker}\) was ended by the signal Killed; .*goes on"
        over(job, faults, "kill -9 of a loader's worker", said)
        assert_goes_on(job)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
