"""One run in a folder: what is refused, what is claimed and let go, and that nothing of the first run is touched."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.common import folder as folder_file
from lightning_novograd.recipes.common.folder import (
    FAILURE,
    LOCK,
    claim_folder,
    claimed_folder,
    is_one_of_many,
    is_requeued,
    process_rank,
    release_folder,
    save_config,
)
from lightning_novograd.recipes.common.way_on import note_way_on

LAUNCHERS = ("NODE_RANK", "SLURM_JOB_NAME", "RANK", "LOCAL_RANK", "SLURM_PROCID", "WORLD_SIZE", "SLURM_NTASKS")
LAUNCHERS += ("SLURM_RESTART_COUNT",)


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def trained(folder: Path) -> Path:
    """A run folder with a checkpoint."""
    (folder / "checkpoints").mkdir(parents=True)
    last = folder / "checkpoints" / "last.ckpt"
    last.write_bytes(b"1")
    (folder / "metrics.csv").write_text("step\n")
    return last


def test_a_folder_is_made_claimed_and_left_as_it_was(tmp_path):
    with claimed_folder(tmp_path / "a" / "b", None):
        assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == [LOCK]
        claim_folder(tmp_path / "a" / "b", None)  # the same run
    assert not list((tmp_path / "a" / "b").iterdir())
    assert not folder_file._held


@pytest.mark.parametrize("trace", ["results.json", "metrics.csv", "checkpoints/average.ckpt"])
def test_a_folder_of_another_run_is_refused(tmp_path, trace):
    (tmp_path / trace).parent.mkdir(exist_ok=True)
    (tmp_path / trace).write_text("")
    problem = rf"^hydra\.run\.dir: {tmp_path} holds a run already \({Path(trace).name}\); choose another one$"
    for resume in (None, "elsewhere/last.ckpt", f"{tmp_path}x/last.ckpt"):
        with pytest.raises(ConfigError, match=problem):
            claim_folder(tmp_path, resume)
    assert not (tmp_path / LOCK).exists()


def test_what_is_continued_there_may_be(tmp_path, monkeypatch):
    last = trained(tmp_path / "run")
    for resume in (None, "elsewhere/last.ckpt"):
        with pytest.raises(ConfigError, match=rf"\(metrics\.csv, last\.ckpt\); resume=auto goes on, from {last}; or"):
            claim_folder(tmp_path / "run", resume)
    for resume in (str(last), f"{last.parent}/../checkpoints/other.ckpt"):
        with claimed_folder(tmp_path / "run", resume):
            pass
    monkeypatch.chdir(tmp_path)
    with claimed_folder(Path("run"), "run/checkpoints/last.ckpt"):
        pass


@pytest.mark.parametrize(
    ("names", "newest"),
    [
        (["checkpoints/last.ckpt", "checkpoints/step0000075.ckpt", "checkpoints/epoch001-dev_wer0.5000.ckpt"], 1),
        (["checkpoints/step0000011.ckpt", "checkpoints/average.ckpt"], 0),
        (["checkpoints/epoch000-dev_wer0.5000.ckpt", "checkpoints/average.ckpt"], 0),
        (["checkpoints/last.ckpt", "hpc_ckpt_1.ckpt", "metrics.csv"], 1),
    ],
)
def test_the_way_on_is_from_the_newest_whatever_its_name(tmp_path, names, newest):
    """Not from last.ckpt, which may be missing, or many steps behind."""
    (tmp_path / "checkpoints").mkdir()
    for seconds, name in enumerate(names):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (seconds, seconds))
    way = f"resume=auto goes on, from {tmp_path / names[newest]}; or choose another folder"
    with pytest.raises(ConfigError, match=rf"^hydra\.run\.dir: .* holds a run already \(.*\); {re.escape(way)}$"):
        claim_folder(tmp_path, None)
    error = ValueError("full")
    note_way_on(error, tmp_path)
    assert error.__notes__ == [f"({way.partition(';')[0]})"]


def test_two_checkpoints_to_go_on_from(tmp_path):
    """A job that is requeued would go back to the named one each time."""
    last = trained(tmp_path / "run")
    message = (
        r"^resume_from: .*last\.ckpt is of the run in .*, whose newest checkpoint resume=auto takes; leave it out, "
    )
    with pytest.raises(ConfigError, match=f"{message}or say resume=null to go on from that very one$"):
        claim_folder(tmp_path / "run", str(last), "auto")
    with claimed_folder(tmp_path / "run", str(last)), claimed_folder(tmp_path / "other", str(last), "auto"):
        pass


def test_a_home_directory_is_one(tmp_path, monkeypatch):
    trained(tmp_path / "run")
    monkeypatch.setenv("HOME", str(tmp_path))
    with claimed_folder(tmp_path / "run", "~/run/checkpoints/last.ckpt"):
        pass
    with pytest.raises(ConfigError, match="holds a run already"):
        claim_folder(tmp_path / "run", "~nobody_there/run/checkpoints/last.ckpt")


def test_a_job_that_slurm_has_requeued_goes_on(tmp_path, monkeypatch):
    trained(tmp_path)
    now = time.time()

    def written(name: str, after: float) -> None:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (now + after, now + after))

    written("hpc_ckpt_1.ckpt", 1)
    assert not is_requeued(tmp_path), "Lightning would not take it"
    with pytest.raises(ConfigError, match="holds a run already"):
        claim_folder(tmp_path, None)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert not is_requeued(tmp_path / "other")
    assert is_requeued(tmp_path)
    with claimed_folder(tmp_path, None):
        pass
    written("results.json", 4)
    assert not is_requeued(tmp_path)
    with pytest.raises(ConfigError, match="holds a run already"):
        claim_folder(tmp_path, None)
    (tmp_path / "results.json").rename(tmp_path / "results_step0000008.json")
    assert not is_requeued(tmp_path), "it was continued by hand"
    written("hpc_ckpt_3.ckpt", 5)
    assert is_requeued(tmp_path)


def test_a_job_that_slurm_begins_again_goes_on_without_its_signal(tmp_path, monkeypatch):
    """A node has failed, or SIGTERM has preempted it: nothing but SLURM's count says so."""
    last = trained(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert not is_requeued(tmp_path), "of another job: this is no process of a step"
    monkeypatch.setenv("SLURM_NTASKS", "1")
    with claimed_folder(tmp_path, None):
        pass
    last.unlink()
    with claimed_folder(tmp_path, None):  # killed before its first checkpoint, it begins anew
        pass
    (tmp_path / "results.json").touch()
    assert not is_requeued(tmp_path), "it has ended"
    last.touch()
    os.utime(last, (time.time() + 5,) * 2)
    assert is_requeued(tmp_path), "and was continued"
    for count in ("0", ""):
        monkeypatch.setenv("SLURM_RESTART_COUNT", count)
        with pytest.raises(ConfigError, match="holds a run already"):
            claim_folder(tmp_path, None)


def test_a_command_that_was_refused_leaves_no_run(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "train.log").write_text("ConfigError")
    (tmp_path / "events.out.tfevents.1").write_bytes(b"its head alone")
    (tmp_path / FAILURE).touch()
    with claimed_folder(tmp_path, None):
        assert not (tmp_path / FAILURE).exists()


def test_what_a_process_left_that_was_killed_while_it_wrote_is_gone(tmp_path):
    last = trained(tmp_path)
    halves = [path.with_name(f".{path.name}.partial") for path in (last, tmp_path / "hpc_ckpt_1.ckpt")]
    for half in halves:
        half.touch()
    with pytest.raises(ConfigError, match="holds a run already"):
        claim_folder(tmp_path, None)
    assert all(half.exists() for half in halves), "the folder is another's"
    with claimed_folder(tmp_path, str(last)):
        assert not any(half.exists() for half in halves)
    assert last.exists()


HOLDS = """
import sys, time
from pathlib import Path
from lightning_novograd.recipes.common.folder import claim_folder
claim_folder(Path(sys.argv[1]), None)
print("held", flush=True)
time.sleep(60)
"""


def test_a_process_that_trains_there_holds_the_folder_until_it_is_killed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        message = rf"^hydra\.run\.dir: another process is training in {tmp_path} \(process {process.pid} on .*\)$"
        with pytest.raises(ConfigError, match=message):
            claim_folder(tmp_path, None)
        process.kill()
    assert (tmp_path / LOCK).exists()
    with claimed_folder(tmp_path, None):
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")


def test_a_lock_file_that_its_owner_has_removed_is_no_lock(tmp_path, monkeypatch):
    lockf, seen = folder_file.fcntl.lockf, []

    def remove_first(file, how):
        lockf(file, how)
        if not seen:
            (tmp_path / LOCK).unlink()
        seen.append(how)

    monkeypatch.setattr(folder_file.fcntl, "lockf", remove_first)
    with claimed_folder(tmp_path, None):
        assert (tmp_path / LOCK).exists()
    assert len(seen) == 2


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(file, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(folder_file.fcntl, "lockf", refuse)
    with claimed_folder(tmp_path, None):
        pass


def test_a_system_without_such_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_file, "fcntl", None)
    with claimed_folder(tmp_path, None):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"^hydra\.run\.dir: .*/file/run cannot be written: Not a directory$"):
        claim_folder(tmp_path / "file" / "run", None)


@pytest.mark.parametrize(
    ("environment", "rank", "many"),
    [
        ({}, 0, False),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, 1, True),
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "2"}, 0, True),
        ({"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16"}, 9, True),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, 3, True),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, 0, False),
        ({"RANK": ""}, 0, False),
        ({"NODE_RANK": "1"}, 1, True),
        ({"NODE_RANK": "0"}, 0, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}, 1, True),
        ({"NODE_RANK": "0", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, 1, True),
        ({"NODE_RANK": "1", "RANK": "0", "WORLD_SIZE": "4"}, 0, True),
        ({"NODE_RANK": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, 3, True),
    ],
)
def test_ranks(tmp_path, monkeypatch, environment, rank, many):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (process_rank(), is_one_of_many()) == (rank, many)
    trained(tmp_path / "run")
    if rank:  # the first one asks for all
        claim_folder(tmp_path / "run", None)
        release_folder(tmp_path / "run")


def test_the_config_is_written_as_hydra_writes_it(tmp_path, monkeypatch):
    config = OmegaConf.create({"a": 1, "b": "${a}"})
    runtime = {"output_dir": str(tmp_path)}
    hydra = OmegaConf.create({"overrides": {"task": ["a=1"]}, "mode": "RUN", "runtime": runtime})
    save_config(tmp_path, config)  # not in a command of Hydra's
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    save_config(tmp_path / "other", config)
    with monkeypatch.context() as other_rank:
        other_rank.setenv("RANK", "1")
        save_config(tmp_path, config)
    assert not list(tmp_path.iterdir())
    for _ in range(2):  # a run that is continued has them already
        save_config(tmp_path, config)
    written = {path.name: path.read_text() for path in (tmp_path / ".hydra").iterdir()}
    assert written.keys() == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    assert (written["config.yaml"], written["overrides.yaml"]) == ("a: 1\nb: ${a}\n", "- a=1\n")
    assert OmegaConf.create(written["hydra.yaml"]).hydra == hydra
