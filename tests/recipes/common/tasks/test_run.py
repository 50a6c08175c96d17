"""A run of any task: what it leaves behind, what it returns, how it goes on."""

import json
import logging

import pytest
import torch
from tiny_task import POINTS, PointModule, config

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.common.callbacks import DivergenceError
from lightning_novograd.recipes.common.tasks.plan import describe_run
from lightning_novograd.recipes.common.tasks.run import run


def test_what_a_run_leaves_behind(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="lightning_novograd")
    results = run(POINTS, config(), tmp_path)
    assert results == json.loads((tmp_path / "results.json").read_text())
    assert list(results) == [
        "dev_error",
        "test_error",
        "dev_loss",
        "test_loss",
        "epochs",
        "optimizer_steps",
        "global_batch_size",
        "points_per_s",
        "wall_s",
        "peak_memory_mb",
        "model_parameters",
        "optimizer",
    ]
    counted = {"epochs": 3, "optimizer_steps": 15, "global_batch_size": 8, "model_parameters": 10}
    assert counted.items() <= results.items()
    assert results["optimizer"] == "novograd"
    assert results["optimizer"] == "novograd"
    assert 0 <= results[POINTS.metric] < 0.5
    assert {path.name for path in tmp_path.iterdir()} >= {"checkpoints", "metrics.csv", "curves.png", "results.json"}
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert [name.split("-dev_error0.")[0] for name in kept] == [kept[0][:8], kept[1][:8], "last.ckpt"]
    said = caplog.text
    assert "40 points for train, 10 points for dev, 9 points for test" in said
    assert f"test error {100 * results['test_error']:.2f} %   loss {results['test_loss']:.4f}" in said
    assert "points/s, 0:00:0" in said


def test_a_step_does_not_depend_on_how_its_batch_is_split(tmp_path):
    whole = run(POINTS, config(), tmp_path / "whole")
    large = {"global_batch_size": 8, "max_per_device_batch_size": 2, "last": "keep"}
    split = run(POINTS, config(large_batch=large), tmp_path / "split")
    assert split["dev_loss"] == pytest.approx(whole["dev_loss"], rel=1e-5)
    assert split["optimizer_steps"] == whole["optimizer_steps"]


def test_a_run_that_goes_on_ends_as_one_that_was_not_interrupted(tmp_path):
    """Inside an epoch; what it goes on from lies in the folder of another run."""
    straight = run(POINTS, config(checkpoint={"every_n_steps": 7}), tmp_path / "straight")
    [cut] = (tmp_path / "straight" / "checkpoints").glob("step*.ckpt")
    assert cut.name == "step0000014.ckpt"
    again = run(POINTS, config(resume_from=str(cut)), tmp_path / "again")
    assert again["optimizer_steps"] == straight["optimizer_steps"] == 15
    assert (again["dev_loss"], again["test_loss"]) == (straight["dev_loss"], straight["test_loss"])
    last = [torch.load(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("straight", "again")]
    assert all(torch.equal(last[0][key], last[1][key]) for key in last[0])
    with pytest.raises(ConfigError, match=r"hydra\.run\.dir: .* holds a run already"):
        run(POINTS, config(), tmp_path / "again")


@pytest.mark.parametrize(("split", "words"), [("bad", r"train:39"), ("bad_dev", "dev set: the loss is not finite")])
def test_what_is_not_finite_ends_a_run(tmp_path, split, words):
    with pytest.raises((DataError, DivergenceError), match=words):
        run(POINTS, config(data={split: {"bad": 39, "bad_dev": 9}[split]}), tmp_path)
    assert not (tmp_path / "results.json").exists()


def test_bad_steps_are_left_out(tmp_path):
    results = run(POINTS, config(data={"bad": 39}, nonfinite={"action": "skip"}), tmp_path)
    assert (results["skipped_steps"], results["optimizer_steps"]) == (3, 15)


def test_a_plan_trains_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = describe_run(POINTS, config(large_batch={"global_batch_size": 16})).splitlines()
    assert said == [
        "global batch 16 = 8 per device x 1 devices x 1 nodes x 2 accumulated",
        "LR 0.05 (optim.lr)",
        "40 points in an epoch, 8 left out of it",
        "2 steps per epoch, 6 in all (at most 3 epochs), no warmup",
        "optimizer state (NovoGrad): 4.8e-05 MB, for 1e-05 M parameters",
    ]
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match=r"the training set has 40 points, fewer than one global batch of 48"):
        describe_run(POINTS, config(large_batch={"global_batch_size": 48}))


def test_a_module_without_an_optim_block_is_evaluated_only():
    module = PointModule({"classes": 2})
    assert module.hparams["optim"] is None
    assert module(torch.zeros(3, 4)).shape == (3, 2)
    with pytest.raises(ConfigError, match=r"^optim: expected a mapping, got None"):
        module.configure_optimizers()
