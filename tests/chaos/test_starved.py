"""A disk that is full, a folder that cannot be written, a corpus that vanishes, NaN: an error in a line, or a count."""

import contextlib
import re
import shutil
import subprocess

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


def over(job: Job, faults, fault: str, said: str, by_hydra: bool = False) -> str:
    """What was printed, once the job is over: one line with the error, and no traceback but Hydra's."""
    seconds = job.wait_until_over(NOTHING_LEFT)
    printed = job.said()
    assert re.search(said, printed), printed
    assert by_hydra or "Traceback" not in printed, printed
    assert all(job.codes())
    faults(fault, f"{job.ranks} rank{'s' * (job.ranks > 1)}", re.search(rf".*(?:{said}).*", printed)[0], seconds)
    return printed


def whole_checkpoints(job: Job) -> list[int]:
    """Steps of all checkpoints, each of which can be read."""
    files = list(job.run_dir.glob("checkpoints/*.ckpt"))
    assert not list(job.run_dir.glob("checkpoints/.*.partial"))
    return [torch.load(file, weights_only=True)["global_step"] for file in files]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_full_disk(corpus, small_disk, faults, ranks):
    with Job("lightning", small_disk, long_run(corpus, "data.num_workers=0"), ranks=ranks) as job:
        job.wait_until_it_trains()
        with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(1 << 12)):
                pass
        over(job, faults, "the disk of the run folder is full", "cannot be written: No space left on device")
        (small_disk / "filler").unlink()
        assert max(whole_checkpoints(job)) >= 2


def test_a_folder_that_cannot_be_written(corpus, small_disk, faults):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with Job("lightning", small_disk.parent, long_run(corpus), ranks=1, run_dir=small_disk / "run") as job:
        over(job, faults, "the run folder is on a disk that can only be read", "Read-only file system", by_hydra=True)


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
