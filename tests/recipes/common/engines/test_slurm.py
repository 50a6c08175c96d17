"""Training under SLURM: the batch script says what Lightning needs, and its command composes; so does the launcher."""

import importlib.util
import os
import re
import signal
import subprocess

import pytest
from conftest import ROOT
from hydra import compose, initialize_config_module

from lightning_novograd.recipes.asr.training.settings import RunSettings
from lightning_novograd.recipes.common.engines.devices import count_devices

SCRIPT = ROOT / "recipes" / "asr" / "slurm.sbatch"
ALLOCATION = {
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_NUM_NODES": "4",
    "SLURM_NTASKS_PER_NODE": "8",
    "SLURM_CPUS_PER_TASK": "8",
}


@pytest.fixture
def hydra(monkeypatch):
    for name, value in ALLOCATION.items():
        monkeypatch.setenv(name, value)
    with initialize_config_module("lightning_novograd.conf", version_base="1.3"):
        yield


def test_the_batch_script_is_bash():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    assert os.access(SCRIPT, os.X_OK)


def test_the_batch_script_asks_for_what_lightning_needs():
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?", SCRIPT.read_text(), re.MULTILINE))
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]  # one process for each GPU
    assert asked["job-name"] not in ("bash", "interactive")
    assert (asked["signal"], asked["requeue"]) == ("SIGUSR1@90", "")  # to the tasks, not to the script alone
    assert asked["open-mode"] == "append"  # a job that goes on keeps what it has said


def test_the_command_of_the_batch_script_composes(hydra, tmp_path):
    (tmp_path / "srun").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", str(SCRIPT), "data=an4", "large_batch.global_batch_size=8192"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    options, program, *overrides = (line for line in done.stdout.splitlines() if line != "python")
    assert (options, program) == ("--kill-on-bad-exit=1", "recipes/asr/train.py")
    assert "hydra.run.dir=outputs/slurm-17" in overrides
    settings = RunSettings.read(compose("asr", overrides=overrides), "")
    assert settings.resume == "auto", "a job that is begun again, because a node has failed, goes on"
    assert (settings.trainer["num_nodes"], count_devices(settings.trainer)) == (4, 8)
    assert settings.large_batch.global_batch_size == 8192


def test_a_sigterm_to_the_batch_script_is_not_for_srun(tmp_path):
    """Which would kill its tasks while they save: they have got the signal themselves."""
    (tmp_path / "srun").write_text("#!/bin/sh\ntrap 'echo killed; exit 9' TERM\necho began\nread line\nexit 143\n")
    (tmp_path / "srun").chmod(0o755)
    environment = {**os.environ, **ALLOCATION, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(["bash", str(SCRIPT)], env=environment, cwd=tmp_path, **pipes) as script:
        assert script.stdout.readline() == "began\n"
        script.send_signal(signal.SIGTERM)
        said, _ = script.communicate("saved\n", timeout=60)
    assert (said, script.returncode) == ("", 143)


def test_the_launcher_composes(hydra):
    if importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is None:
        pytest.skip("hydra-submitit-launcher is not installed (extra slurm)")
    cfg = compose("asr", overrides=["hydra/launcher=slurm", "trainer=slurm"], return_hydra_config=True)
    launcher = cfg.hydra.launcher
    assert launcher["_target_"].endswith("SlurmLauncher")
    assert (launcher.tasks_per_node, launcher.gpus_per_node, launcher.name) == (8, 8, "asr")
