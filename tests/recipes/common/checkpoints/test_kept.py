"""Checkpoint files: whole whenever the process is killed, and with names that Hydra takes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.training.settings import RunSettings
from lightning_novograd.recipes.common.checkpoints import kept as checkpoints_file
from lightning_novograd.recipes.common.checkpoints.kept import WholeCheckpoints, build_checkpoints, last_behind

BLOCKS = ("model", "data", "optim", "trainer", "logger", "checkpoint", "large_batch")


def settings(**changes) -> RunSettings:
    return RunSettings.read({**{name: {} for name in BLOCKS}, **changes}, "")


def test_every_name_can_be_typed_as_resume_from(tmp_path):
    kept = build_checkpoints(settings(checkpoint={"every_n_steps": 4}), tmp_path, "dev_wer")
    names = [one.format_checkpoint_name({"epoch": 3, "step": 70, "dev_wer": 0.03374}) for one in kept]
    assert [name.rpartition("/")[2] for name in names] == [
        "epoch003-dev_wer0.0337.ckpt",
        "last.ckpt",
        "step0000070.ckpt",
    ]
    for name in names:
        [override] = OverridesParser.create().parse_overrides([f"resume_from={name}"])
        assert override.value() == name


@pytest.mark.parametrize("limit", [0, 0.0])
def test_without_a_dev_set_there_is_no_best(tmp_path, limit):
    [last] = build_checkpoints(settings(trainer={"limit_val_batches": limit}), tmp_path, "dev_wer")
    assert (last.filename, last.monitor) == ("last", None)
    assert len(build_checkpoints(settings(trainer={"limit_val_batches": 1}), tmp_path, "dev_wer")) == 2
    assert len(build_checkpoints(settings(trainer={"limit_val_batches": None}), tmp_path, "dev_wer")) == 2


def test_a_checkpoint_is_written_under_another_name_and_renamed(tmp_path, monkeypatch):
    path, order = tmp_path / "checkpoints" / "last.ckpt", []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(checkpoints_file.os, name, lambda *a, real=real, name=name: order.append(name) or real(*a))
    WholeCheckpoints().save_checkpoint({"a": torch.ones(2)}, path)
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    assert WholeCheckpoints().load_checkpoint(path, weights_only=True)["a"].tolist() == [1, 1]
    assert order[0] == "fsync"
    assert order[-2:] == ["replace", "fsync"], "the folder too, which has the new name"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (
            RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64\nmore"),
            "[enforce fail at inline",
        ),
        (KeyboardInterrupt(), None),
    ],
)
def test_what_is_not_written_whole_leaves_the_old_one(tmp_path, monkeypatch, error, reason):
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"a": 1}, path)

    def write_half(checkpoint, file):
        file.write(b"PK")
        raise error

    monkeypatch.setattr(checkpoints_file.torch, "save", write_half)
    with pytest.raises(DataError if reason else KeyboardInterrupt) as caught:
        WholeCheckpoints().save_checkpoint({"a": 2}, path)
    if reason:
        assert str(caught.value).startswith(f"checkpoint {path} cannot be written: {reason}")
        assert "\n" not in str(caught.value)
        assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert WholeCheckpoints().load_checkpoint(path, weights_only=True) == {"a": 1}


def test_a_folder_that_became_read_only_in_the_middle(tmp_path, monkeypatch):
    def refused(self, *_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refused)
    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(DataError, match=r"last\.ckpt cannot be written: Permission denied$"):
        WholeCheckpoints().save_checkpoint({"a": 1}, tmp_path / "last.ckpt")


def test_a_lost_worker_is_not_taken_for_the_disk(tmp_path, monkeypatch):
    """torch's handler of SIGCHLD raises in whatever the main thread does."""

    def interrupted(checkpoint, file):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr(checkpoints_file.torch, "save", interrupted)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        WholeCheckpoints().save_checkpoint({"a": 1}, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())


def test_what_is_no_local_file_goes_lightnings_way(monkeypatch):
    asked = []
    monkeypatch.setattr(pl.plugins.io.TorchCheckpointIO, "save_checkpoint", lambda self, *args: asked.append(args))
    WholeCheckpoints().save_checkpoint({}, "s3://bucket/last.ckpt")
    assert asked == [({}, "s3://bucket/last.ckpt", None)]


WRITES = """
import sys, torch
from lightning_novograd.recipes.common.checkpoints.kept import WholeCheckpoints
content = {"a": torch.zeros(4_000_000)}
while True:
    content["a"] += 1
    WholeCheckpoints().save_checkpoint(content, sys.argv[1])
    print(int(content["a"][0]), flush=True)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_writes_leaves_a_whole_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    torn = 0
    for wait in (0.003, 0.008, 0.013):
        with subprocess.Popen([sys.executable, "-c", WRITES, str(path)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            written = [process.stdout.readline() for _ in range(3)]
            time.sleep(wait)
            process.kill()
        values = torch.load(path, weights_only=True)["a"]
        assert int(written[-1]) <= values[0]
        assert bool((values == values[0]).all())
        torn += (tmp_path / ".last.ckpt.partial").exists()
    assert torn, "no kill came while a file was written"


def test_names_are_used_again_and_the_last_one_comes_behind_the_others(tmp_path):
    """A run that was killed between two of them goes on before both, and writes both again."""
    settings = RunSettings.read({**{name: {} for name in BLOCKS}, "checkpoint": {"average": 2, "every_n_steps": 3}}, "")
    kept = build_checkpoints(settings, tmp_path, "dev_wer")
    assert not any(one._enable_version_counter for one in kept)
    names = [one.filename.partition("{")[0] for one in last_behind(kept)]
    assert names == ["epoch", "recent-", "step", "last"]
