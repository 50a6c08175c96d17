"""A launch heeds its own files, and no other's."""

import os
import time
from types import SimpleNamespace

import pytest

from lightning_novograd.recipes.common.faults import launch
from lightning_novograd.recipes.common.faults.launch import LAUNCH, Launch
from lightning_novograd.recipes.common.folder import FAILURE, RANKS, claimed_folder

VARIABLES = (
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_RESTART_COUNT",
)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def strategy(sent=None):
    """One whose ranks get what the first has drawn."""
    begun = []
    made = SimpleNamespace(setup_environment=lambda: begun.append(True), begun=begun)
    made.broadcast = lambda drawn: sent or drawn
    return made


def test_the_ranks_agree_as_soon_as_they_know_each_other(tmp_path):
    first, second, ours, theirs = Launch(), Launch(), strategy(), strategy("x")
    first.agree(ours)
    second.agree(theirs)
    assert first.id is second.id is None
    ours.setup_environment()
    assert len(first.id) == 32
    theirs.broadcast = lambda drawn: first.id
    theirs.setup_environment()
    assert second.id == first.id
    assert first.fails_first(tmp_path)
    assert not second.fails_first(tmp_path)
    drawn = first.id
    ours.setup_environment()  # of the test behind the fit
    assert (first.id, len(ours.begun)) == (drawn, 2)
    first.agree(strategy())  # the next job of a sweep
    assert first.id is None


@pytest.mark.parametrize(
    ("then", "now"),
    [
        ({"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}, {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "1"}),
        (
            {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0"},
            {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "1"},
        ),
    ],
)
def test_before_that_their_launcher_tells_them_from_others(tmp_path, monkeypatch, then, now):
    for name, value in then.items():
        monkeypatch.setenv(name, value)
    assert Launch().fails_first(tmp_path)
    assert Launch().has_failed(tmp_path)
    for name, value in now.items():
        monkeypatch.setenv(name, value)
    assert not Launch().has_failed(tmp_path)
    assert Launch().fails_first(tmp_path)


def test_or_their_beginning(tmp_path, monkeypatch):
    """Of the same torchrun command twice."""
    assert Launch().fails_first(tmp_path)
    monkeypatch.setattr(launch, "_BEGAN", time.time() + 60)
    assert not Launch().has_failed(tmp_path)
    assert Launch().fails_first(tmp_path)
    monkeypatch.setattr(launch, "_BEGAN", time.time() - 60)
    assert Launch().has_failed(tmp_path)
    assert not Launch().fails_first(tmp_path)


def test_an_older_file_of_this_launch_is_heeded(tmp_path):
    """Clocks of machines differ."""
    ours = Launch()
    ours.id = "now"
    assert ours.fails_first(tmp_path)
    os.utime(ours.path(tmp_path, FAILURE), (0, 0))
    assert ours.has_failed(tmp_path)
    assert not ours.fails_first(tmp_path)


def test_a_claim_clears_up_behind_every_launch(tmp_path, monkeypatch):
    for id in (None, "then"):
        monkeypatch.setattr(LAUNCH, "id", id)
        LAUNCH.path(tmp_path, FAILURE).touch()
        LAUNCH.path(tmp_path, RANKS).mkdir()
    with claimed_folder(tmp_path, None):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
