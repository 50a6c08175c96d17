"""Files of strangers, through the recipe's commands and convert-checkpoint: nothing of theirs runs."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from speech_files import write_audio, write_manifest

from lightning_novograd.__main__ import main as convert
from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.optim import NovoGrad
from lightning_novograd.recipes.asr import evaluate, transcribe
from lightning_novograd.recipes.asr.model.jasper import JasperCTC
from lightning_novograd.recipes.asr.training.run import run


class Runs:
    """Makes a folder when a pickle of it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def config(*overrides: str):
    with initialize_config_module("lightning_novograd.conf", version_base="1.3"):
        return compose("asr", overrides=["model=quartznet_small", "data=manifest", *overrides])


@pytest.fixture
def made(tmp_path):
    """A run folder as train.py leaves it, a recording, its manifest, and where a marker would be."""
    write_audio(tmp_path / "a.wav", 0.6, 16000, 1, seed=1)
    entry = {"audio_filepath": "a.wav", "duration": 0.6, "text": "a b"}
    manifest = write_manifest(tmp_path / "set.json", [entry] * 2)
    cfg = config(*(f"data.{split}={manifest}" for split in ("train", "dev", "test")), "data.batch_size=1")
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints").mkdir()
    OmegaConf.save(cfg, tmp_path / "run" / ".hydra" / "config.yaml")
    return tmp_path


def good(made: Path) -> dict:
    model = OmegaConf.to_container(OmegaConf.load(made / "run" / ".hydra" / "config.yaml").model, resolve=True)
    weights = {f"model.{name}": value for name, value in JasperCTC.from_config(model).state_dict().items()}
    optimizer = NovoGrad([torch.nn.Parameter(torch.ones(2))]).state_dict()
    hyper_parameters = {"model": model, "optim": None, "num_samples": 0}
    return {"state_dict": weights, "hyper_parameters": hyper_parameters, "optimizer_states": [optimizer], "epoch": 0}


def hyper(**changes):
    def make(made, marker):
        checkpoint = good(made)
        checkpoint["hyper_parameters"] |= {key: value(marker) for key, value in changes.items()}
        return checkpoint

    return make


CLI = "lightning.pytorch.cli.instantiate_module"
# what is more than data, and what is data that other programs run
PICKLES = {
    "weights": lambda made, marker: {**good(made), "state_dict": {"model.x": Runs(marker)}},
    "hyper-parameters": hyper(model=Runs),
    "callbacks": lambda made, marker: {**good(made), "callbacks": {"a": Runs(marker)}},
    "optimizer": lambda made, marker: {**good(made), "optimizer_states": [Runs(marker)]},
    "all of it": lambda made, marker: Runs(marker),
}
NAMES = {
    "instantiator": hyper(_instantiator=lambda marker: "os.mkdir", path=str),
    "class": hyper(_instantiator=lambda m: CLI, _class_path=lambda m: "os.mkdir"),
    "argument": hyper(
        _instantiator=lambda m: CLI,
        optim=lambda m: {"class_path": "os.mkdir", "init_args": {"path": str(m)}},
    ),
}


def one_line(text: str, marker: Path) -> bool:
    return text.startswith("error: ") and text.count("\n") == 1 and not marker.exists()


@pytest.mark.parametrize("bare", [False, True], ids=["torch.save", "pickle"])
@pytest.mark.parametrize("hostile", PICKLES.values(), ids=PICKLES)
@pytest.mark.filterwarnings("error:Detected pickle protocol")
def test_a_pickle_runs_nothing(made, hostile, bare, capsys):
    path, marker = made / "run" / "checkpoints" / "last.ckpt", made / "marker"
    content = hostile(made, marker)
    path.write_bytes(pickle.dumps(content)) if bare else torch.save(content, path)
    for command, arguments in ((evaluate.main, []), (transcribe.main, [str(made / "a.wav")])):
        for which in ("last", "best", str(path)):
            assert command([str(made / "run"), "--checkpoint", which, "--device", "cpu", *arguments]) == 1
            assert one_line(capsys.readouterr().err, marker)
    assert convert(["convert-checkpoint", str(path), str(made / "out.ckpt")]) == 2
    assert one_line(capsys.readouterr().err, marker)
    resumed = OmegaConf.merge(OmegaConf.load(made / "run" / ".hydra" / "config.yaml"), {"resume_from": str(path)})
    with pytest.raises(DataError) as caught:
        run(resumed, made / "resumed")
    assert "\n" not in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize("hostile", NAMES.values(), ids=NAMES)
def test_names_of_code_among_hyper_parameters_are_not_looked_at(made, hostile, capsys):
    path, marker = made / "run" / "checkpoints" / "last.ckpt", made / "marker"
    torch.save(hostile(made, marker), path)
    assert evaluate.main([str(made / "run"), "--device", "cpu"]) == 0
    assert transcribe.main([str(made / "run"), "--device", "cpu", str(made / "a.wav")]) == 0
    assert convert(["convert-checkpoint", str(path), str(made / "out.ckpt"), "--to", "nemo"]) == 0
    resumed = OmegaConf.merge(
        OmegaConf.load(made / "run" / ".hydra" / "config.yaml"),
        {"resume_from": str(path), "trainer": {"max_epochs": 1, "enable_progress_bar": False}},
    )
    with pytest.raises(
        Exception, match="pytorch-lightning_version"
    ):  # it is no whole checkpoint; Lightning stops there
        run(resumed, made / "resumed")
    assert not marker.exists()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", {"_target_": "os.mkdir", "path": "MARKER"}),
        ("model.encoder._target_", "os.mkdir"),
        ("optim", {"_target_": "os.mkdir", "path": "MARKER"}),
        ("optim.sched", {"_target_": "os.mkdir", "path": "MARKER"}),
        ("trainer._target_", "os.mkdir"),
        ("trainer.callbacks", [{"_target_": "os.mkdir", "path": "MARKER"}]),
        ("logger.csv", {"_target_": "os.mkdir", "path": "MARKER"}),
        ("logger.evil", {}),
        ("data._target_", "os.mkdir"),
        ("data.name", "os.mkdir"),
    ],
)
def test_a_config_that_names_code_runs_nothing(made, key, value):
    marker = made / "marker"
    cfg = OmegaConf.load(made / "run" / ".hydra" / "config.yaml")
    if isinstance(value, dict):
        value = {name: str(marker) if item == "MARKER" else item for name, item in value.items()}
    OmegaConf.update(cfg, key, value, force_add=True)
    with pytest.raises((ConfigError, TypeError, ValueError)):
        run(cfg, made / "trained")
    assert not marker.exists()


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir", "!!python/name:os.mkdir"]
)
def test_yaml_tags_of_a_run_folder_run_nothing(made, tag, capsys):
    (made / "run" / ".hydra" / "config.yaml").write_text(f"model: !!python/{tag}:os.mkdir [{made / 'marker'}]\n")
    assert evaluate.main([str(made / "run"), "--device", "cpu"]) == 1
    assert one_line(capsys.readouterr().err, made / "marker")
