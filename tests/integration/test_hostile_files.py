"""Files of strangers, through the recipe's commands and convert-checkpoint: nothing of theirs runs."""

import contextlib
import io
import json
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


# ------------------------------------------------------------------------------------- what commands say in one line


BEST = ["--checkpoint", "best"]
CALLBACKS = {
    "list": ([1], "callbacks must be a mapping, not list"),
    "number": (3, "callbacks must be a mapping, not int"),
    "state is a number": ({"a": 3}, "the run kept none"),
    "no path": ({"a": {"monitor": "dev_wer"}}, "best_model_path must be a text, not None"),
    "path is a number": ({"a": {"monitor": "dev_wer", "best_model_path": 3}}, "best_model_path must be a text, not 3"),
    "path is too long": ({"a": {"monitor": "dev_wer", "best_model_path": "a" * 5000}}, "is gone"),
    "monitor is a tensor": ({"a": {"monitor": torch.ones(2)}}, "the run kept none"),
}


@pytest.mark.parametrize(("callbacks", "problem"), CALLBACKS.values(), ids=CALLBACKS)
def test_states_of_callbacks_that_are_none(made, callbacks, problem, capsys):
    path = made / "run" / "checkpoints" / "last.ckpt"
    torch.save({**good(made), "callbacks": callbacks}, path)
    assert transcribe.main([str(made / "run"), *BEST, str(made / "a.wav")]) == 1
    said = capsys.readouterr().err
    assert one_line(said, made / "marker")
    assert problem in said


def test_keys_of_weights_that_are_no_texts_are_left_out(made):
    checkpoint = good(made)
    checkpoint["state_dict"][3] = torch.ones(1)
    torch.save(checkpoint, made / "run" / "checkpoints" / "last.ckpt")
    assert transcribe.main([str(made / "run"), "--device", "cpu", str(made / "a.wav")]) == 0


@pytest.mark.parametrize("name", ["~nobody-has-this-name/x", "a" * 5000], ids=["no such user", "long"])
def test_names_of_checkpoints_that_cannot_be(made, name, capsys):
    torch.save(good(made), made / "run" / "checkpoints" / "last.ckpt")
    assert transcribe.main([str(made / "run"), "--checkpoint", name, str(made / "a.wav")]) == 1
    said = capsys.readouterr().err
    assert one_line(said, made / "marker")
    assert "does not exist" in said


def test_names_of_other_files_that_are_too_long(made, capsys):
    torch.save(good(made), made / "run" / "checkpoints" / "last.ckpt")
    run_folder, long = str(made / "run"), "a" * 5000
    for command, arguments in (
        (transcribe.main, [run_folder, long]),
        (transcribe.main, [long, "a.wav"]),
        (evaluate.main, [run_folder, "--manifest", long]),
        (evaluate.main, [run_folder, "--out", long]),
        (evaluate.main, [run_folder, "--out", f"{long}/x.json"]),
    ):
        assert command([*arguments, "--device", "cpu"]) == 1
        assert one_line(capsys.readouterr().err, made / "marker")
    manifest = write_manifest(made / "long.json", [{"audio_filepath": long, "duration": 0.6, "text": "a b"}])
    assert evaluate.main([run_folder, "--manifest", str(manifest), "--device", "cpu"]) == 1
    assert one_line(capsys.readouterr().err, made / "marker")


def test_file_names_that_are_not_utf8(made, capsys, caplog):
    caplog.set_level("WARNING", "lightning_novograd")  # processes of pytest-xdist cannot send such names to each other
    torch.save(good(made), made / "run" / "checkpoints" / "last.ckpt")
    name = os.fsdecode(b"caf\xe9.wav")
    (made / "a.wav").rename(made / name)
    stdout = io.TextIOWrapper(raw := io.BytesIO(), encoding="utf-8", write_through=True)
    with contextlib.redirect_stdout(stdout):
        assert transcribe.main([str(made / "run"), "--device", "cpu", str(made / name)]) == 0
        manifest = made / os.fsdecode(b"s\xe9t.json")
        (made / "set.json").rename(manifest)
        manifest.write_text(json.dumps({"audio_filepath": name, "duration": 0.6, "text": "a b"}) + "\n")
        out = made / "out.json"
        assert evaluate.main([str(made / "run"), "--manifest", str(manifest), "--out", str(out)]) == 0
    assert rb"caf\udce9.wav" in raw.getvalue()
    assert rb"s\udce9t.json" in raw.getvalue()
    written = json.loads(out.read_text(encoding="utf-8"))
    assert written["utterances"][0]["audio_filepath"] == str(made / name)
    assert written["manifest"] == str(manifest)


def test_out_is_whole_or_not_there(made, capsys, monkeypatch):
    torch.save(good(made), made / "run" / "checkpoints" / "last.ckpt")
    arguments = [str(made / "run"), "--device", "cpu", "--out"]
    monkeypatch.setattr(evaluate, "transcribe_set", lambda *args: pytest.fail("the folder was found after the work"))
    assert evaluate.main([*arguments, str(made)]) == 1
    assert capsys.readouterr().err == f"error: --out: {made} cannot be written: Is a directory\n"
    monkeypatch.undo()
    out = made / "out.json"
    out.write_text("before")

    def fails(self, content):
        self.with_suffix(".touched").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fails)
    assert evaluate.main([*arguments, str(out)]) == 1
    assert f"error: --out: {out} cannot be written: No space left on device\n" in capsys.readouterr().err
    assert out.read_text() == "before"
    monkeypatch.undo()
    assert evaluate.main([*arguments, str(out)]) == 0
    assert json.loads(out.read_text())["num_utterances"] == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_out_may_be_a_device(made, capsys):
    torch.save(good(made), made / "run" / "checkpoints" / "last.ckpt")
    arguments = [str(made / "run"), "--device", "cpu", "--out"]
    assert evaluate.main([*arguments, "/dev/null"]) == 0
    assert Path("/dev/null").is_char_device()
    assert evaluate.main([*arguments, "/dev/full"]) == 1
    assert "error: --out: /dev/full cannot be written: No space left" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------- resuming


def test_a_checkpoint_to_go_on_from_has_nothing_deleted(made):
    victim = made / "victim"
    victim.mkdir()
    (victim / "thesis.tex").write_text("x")
    cfg = OmegaConf.load(made / "run" / ".hydra" / "config.yaml")
    trainer = {"max_epochs": 1, "enable_progress_bar": False, "accelerator": "cpu"}
    run(OmegaConf.merge(cfg, {"trainer": trainer}), made / "first")
    checkpoint = torch.load(made / "first" / "checkpoints" / "last.ckpt", weights_only=True)
    for key, state in checkpoint["callbacks"].items():
        if "dev_wer" in key:
            worst, path = torch.tensor(9e9), f"local://{victim}"
            state.update(best_k_models={path: worst}, kth_best_model_path=path, kth_value=worst, best_model_score=worst)
            del state["dirpath"]
    torch.save(checkpoint, made / "hostile.ckpt")
    resumed = OmegaConf.merge(
        cfg,
        {"trainer": {**trainer, "max_epochs": 3}, "checkpoint": {"save_top_k": 1}},
        {"resume_from": str(made / "hostile.ckpt")},
    )
    with pytest.raises(
        DataError, match=r"hostile\.ckpt: the state of .* names 'local://.*/victim', which is in no"
    ) as caught:
        run(resumed, made / "resumed")
    assert "\n" not in str(caught.value)
    assert (victim / "thesis.tex").exists()
