"""A model by its path: a run folder, a checkpoint, a `.nemo` archive; what is none of them is one line."""

from pathlib import Path

import pytest
import torch
from conftest import GOLDEN

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.model.jasper import JasperCTC
from lightning_novograd.recipes.asr.weights import source

TINY = GOLDEN / "models" / "quartznet_tiny.nemo"
MODEL = {"labels": ["a", "b"], "encoder": {"jasper": [{"filters": 8, "kernel": 11, "stride": 2, "residual": False}]}}


def save(path: Path, **content) -> JasperCTC:
    """A checkpoint as train.py leaves it, of a new model."""
    model = JasperCTC.from_config(MODEL)
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"hyper_parameters": {"model": MODEL}, "state_dict": weights, **content}, path)
    return model


def same(a: JasperCTC, b: JasperCTC) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture
def run(tmp_path) -> Path:
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    (tmp_path / "run" / ".hydra" / "config.yaml").write_text("checkpoint: {test: last}\n")
    return tmp_path / "run"


def test_a_file_stands_for_itself(tmp_path, monkeypatch):
    assert source.load(str(TINY)).alphabet.blank == 28
    monkeypatch.setenv("HOME", str(tmp_path))
    model = save(tmp_path / "a.ckpt")
    loaded = source.load("~/a.ckpt")
    assert same(loaded, model)
    assert not loaded.training
    (tmp_path / "a.ckpt").rename(tmp_path / "no_suffix")
    assert same(source.load(tmp_path / "no_suffix"), model)


def test_a_run_stands_for_what_its_results_were_measured_with(run):
    best = save(run / "checkpoints" / "epoch=003.ckpt")
    last = save(
        run / "checkpoints" / "last.ckpt",
        callbacks={"a": {"monitor": "dev_wer", "best_model_path": "x/epoch=003.ckpt"}},
    )
    assert same(source.load(run), last)
    (run / ".hydra" / "config.yaml").write_text("checkpoint: {test: best}\n")
    assert same(source.load(run), best)
    average = save(run / "checkpoints" / "average.ckpt")
    assert same(source.load(run), average)
    (run / ".hydra" / "config.yaml").write_text("checkpoint: {test: best, average: 2}\n")
    assert same(source.load(run), average)
    (run / ".hydra" / "config.yaml").write_text("checkpoint: {test: best, average: null}\n")
    assert same(source.load(run), best), "the average is of an earlier training in the folder"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("lost", "TMP/lost does not exist; give a run folder of train.py, a .ckpt or a .nemo file"),
        ("lost.nemo", "TMP/lost.nemo: cannot be read: No such file or directory"),
        ("lost.ckpt", "checkpoint TMP/lost.ckpt does not exist"),
        ("folder", "TMP/folder is no run folder of train.py: it has no .hydra/config.yaml"),
        ("run", "there is no last.ckpt in TMP/run/checkpoints"),
        ("text.ckpt", "TMP/text.ckpt is no checkpoint, or holds more than plain data"),
        ("text.nemo", "TMP/text.nemo: is not a .nemo archive"),
    ],
)
def test_what_is_no_model_is_one_line(tmp_path, run, name, problem):
    (tmp_path / "folder").mkdir()
    for suffix in ("ckpt", "nemo"):
        (tmp_path / f"text.{suffix}").write_text("no model")
    with pytest.raises(DataError) as error:
        source.load(tmp_path / name)
    assert str(error.value).replace(str(tmp_path), "TMP").startswith(problem)
    assert "\n" not in str(error.value)


def test_nobodys_home():
    with pytest.raises(DataError, match=r"^~nobody_there/x\.ckpt does not exist: there is no such user$"):
        source.load("~nobody_there/x.ckpt")
