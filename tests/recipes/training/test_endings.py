"""How a run ends: early, and with which weights it is measured."""

import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import callbacks as pl_callbacks

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.training import results as results_file
from lightning_novograd.recipes.asr.training.results import measured_weights
from lightning_novograd.recipes.asr.training.settings import EarlyStoppingSettings, RunSettings
from lightning_novograd.recipes.asr.training.stopping import build_early_stopping, why_stopped
from lightning_novograd.recipes.common.checkpoints.kept import build_checkpoints


def settings(**changes) -> RunSettings:
    blocks = {name: {} for name in ("model", "data", "optim", "trainer", "logger", "checkpoint", "large_batch")}
    return RunSettings.read({**blocks, **changes}, "")


def stops_after(stopping: pl_callbacks.EarlyStopping, values: list[float]) -> int | None:
    """The first validation, from 1, after which it would end."""
    for count, value in enumerate(values, start=1):
        if stopping._evaluate_stopping_criteria(torch.tensor(value))[0]:
            return count
    return None


@pytest.mark.parametrize(
    ("block", "values", "expected"),
    [
        ({"patience": 2}, [0.5, 0.4, 0.4, 0.4], 4),
        ({"patience": 2}, [0.5, 0.4, 0.45, 0.3, 0.2], None),
        ({"patience": 1, "min_delta": 0.05}, [0.5, 0.46, 0.1], 2),
        ({"patience": 9}, [0.5, math.nan], 2),
        ({"patience": 9}, [0.5, math.inf], 2),
    ],
)
def test_a_run_ends_when_nothing_improves_or_is_no_number(block, values, expected):
    stopping = build_early_stopping(EarlyStoppingSettings(**block))
    assert stops_after(stopping, values) == expected
    assert (stopping.monitor, stopping.mode, stopping._check_on_train_epoch_end) == ("dev_wer", "min", False)
    assert build_early_stopping(EarlyStoppingSettings(**block, monitor="dev_loss")).monitor == "dev_loss"


@pytest.mark.parametrize(("test", "kept"), [("last", 3), ("best", 2)])
def test_the_last_epochs_are_kept_where_they_are_averaged(tmp_path, test, kept):
    chosen = settings(checkpoint={"average": 3, "save_top_k": 3, "test": test})
    by_epoch, last, *recent = checkpoints = build_checkpoints(chosen, tmp_path, "dev_wer")
    assert len(checkpoints) == kept
    assert (by_epoch.save_top_k, last.filename) == (3, "last")
    for one in recent:
        assert (one.monitor, one.mode, one.save_top_k, one._save_on_train_epoch_end) == ("epoch", "max", 3, True)
        name = one.format_checkpoint_name({"epoch": 7, "step": 9})
        assert name == f"{tmp_path}/checkpoints/recent-007.ckpt", "Hydra takes it, and it is no last*.ckpt"


@pytest.mark.parametrize(
    ("block", "is_first", "expected", "written"),
    [
        ({}, True, None, []),
        ({"test": "best"}, True, "best.ckpt", []),
        ({"average": 2}, True, "RUN/checkpoints/average.ckpt", [("last", 2)]),
        ({"average": 2, "test": "best"}, True, "RUN/checkpoints/average.ckpt", [("best", 2)]),
        ({"average": 2}, False, "RUN/checkpoints/average.ckpt", []),
    ],
)
def test_the_weights_that_are_measured(tmp_path, monkeypatch, block, is_first, expected, written):
    asked, waited = [], []
    monkeypatch.setattr(results_file, "write_average", lambda run, *args: asked.append(args) or [run / "a.ckpt"])
    trainer = SimpleNamespace(is_global_zero=is_first, strategy=SimpleNamespace(barrier=lambda: waited.append(1)))
    kept = [SimpleNamespace(best_model_path="best.ckpt")]
    found = measured_weights(trainer, settings(checkpoint=block), kept, tmp_path)
    assert found == (expected and expected.replace("RUN", str(tmp_path)))
    assert asked == written
    assert len(waited) == ("average" in block), "no rank reads before it is written"


def test_a_job_that_slurm_has_requeued_is_measured_with_its_last_weights(tmp_path, monkeypatch):
    """Without a file Lightning would load the one that it went on from."""
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.touch()
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.delenv("SLURM_JOB_NAME", raising=False)
    assert measured_weights(None, settings(), [], tmp_path) is None
    (tmp_path / "hpc_ckpt_1.ckpt").touch()
    assert measured_weights(None, settings(), [], tmp_path) == str(last)
    monkeypatch.delenv("SLURM_NTASKS")
    assert measured_weights(None, settings(), [], tmp_path) is None


def test_fewer_are_kept_than_averaged():
    with pytest.raises(ConfigError) as error:
        settings(checkpoint={"average": 3, "test": "best"})
    assert str(error.value) == "checkpoint.save_top_k: 2 keeps fewer than checkpoint.average=3"
    assert settings(checkpoint={"average": 3, "test": "best", "save_top_k": -1}).checkpoint.average == 3


@pytest.mark.parametrize(
    ("waited", "expected"),
    [
        (1, None),
        (2, "stopped early: dev_wer has not fallen by more than 0.01 in 2 validations; the best is 0.2500"),
    ],
)
def test_why_a_training_has_stopped(waited, expected):
    stopping = build_early_stopping(settings(early_stopping={"patience": 2, "min_delta": 0.01}).early_stopping)
    stopping.wait_count, stopping.best_score = waited, torch.tensor(0.25)
    assert why_stopped(stopping) == expected
