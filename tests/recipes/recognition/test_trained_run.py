"""A run folder afterwards: the checkpoint that is meant, and the precision that its model computes in."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.model.jasper import JasperCTC
from lightning_novograd.recipes.asr.recognition.recognizer import Recognizer
from lightning_novograd.recipes.asr.recognition.trained_run import TrainedRun, shown
from lightning_novograd.recipes.asr.text.alphabet import Alphabet
from lightning_novograd.recipes.asr.weights.checkpoint import load_model
from lightning_novograd.recipes.common.checkpoints.reading import read_checkpoint

BLOCK = {"filters": 8, "kernel": 11, "stride": 2, "residual": False}
LENS = torch.tensor([2])
MODEL = {"labels": ["a", "b"], "encoder": {"jasper": [BLOCK]}}


class Recorder(nn.Module):
    """Hears "ab", and notes how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.alphabet = Alphabet("ab")
        self.config = SimpleNamespace(preprocessor=SimpleNamespace(sample_rate=8000))
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: tuple = ()

    def forward(self, wave_BS, lens_B):
        cast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        self.seen = (wave_BS.dtype, self.weight.dtype, cast, self.training, torch.is_inference_mode_enabled())
        return torch.eye(3)[:2].unsqueeze(0), torch.tensor([2])


@pytest.mark.parametrize(
    ("precision", "dtype", "autocast"),
    [
        (None, torch.float32, None),
        (32, torch.float32, None),
        ("32-true", torch.float32, None),
        ("bf16-mixed", torch.float32, torch.bfloat16),
        ("bf16", torch.float32, torch.bfloat16),
        ("16-mixed", torch.float32, torch.bfloat16),  # on the CPU, as the Trainer does
        (16, torch.float32, torch.bfloat16),
        ("bf16-true", torch.bfloat16, None),
        ("16-true", torch.float16, None),
        ("64-true", torch.float64, None),
        (64, torch.float64, None),
    ],
)
def test_it_computes_in_the_precision_of_the_run(precision, dtype, autocast):
    model = Recorder()
    recognizer = Recognizer(model, precision=precision)
    assert recognizer(torch.zeros(1, 100), torch.tensor([100])) == ["ab"]
    assert model.seen == (dtype, dtype, autocast, False, True)
    assert (recognizer.sample_rate, recognizer.alphabet) == (8000, Alphabet("ab"))


@pytest.mark.parametrize("available", [True, False])
def test_the_device_is_a_gpu_if_there_is_one(available, monkeypatch):
    placed = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(Recorder, "to", lambda self, *where: placed.append(where) or self)
    monkeypatch.setattr(torch, "autocast", lambda device, dtype, enabled: placed.append((device, dtype, enabled)))
    for device in ("auto", "cpu", *(["cuda"] if available else [])):
        Recognizer(Recorder(), device, "16-mixed")
    on_cpu = [("cpu", torch.float32), ("cpu", torch.bfloat16, True)]
    on_gpu = [("cuda", torch.float32), ("cuda", torch.float16, True)]
    assert placed == ([*on_gpu, *on_cpu, *on_gpu] if available else [*on_cpu, *on_cpu])
    if not available:
        with pytest.raises(ConfigError, match=r"^--device: is cuda, but this machine has no CUDA device$"):
            Recognizer(Recorder(), "cuda")


def test_waves_and_lengths_go_to_the_device(monkeypatch):
    recognizer = Recognizer(Recorder())
    recognizer._device = "meta"  # another place, that every machine has
    asked = []
    monkeypatch.setattr(Recorder, "forward", lambda self, *args: asked.append(args) or (torch.eye(3)[None, :2], LENS))
    assert recognizer(torch.zeros(1, 100), torch.tensor([100])) == ["ab"]
    assert [value.device.type for value in asked[0]] == ["meta", "meta"]


def run_in(folder: Path, test: str = "last", precision: str | None = None) -> TrainedRun:
    settings = SimpleNamespace(checkpoint=SimpleNamespace(test=test), trainer={"precision": precision})
    return TrainedRun(folder, settings, data=None)


def save(folder: Path, name: str, **content) -> Path:
    path = folder / "checkpoints" / name
    path.parent.mkdir(exist_ok=True)
    torch.save(content, path)
    return path


def of_callback(best: object, monitor: str = "dev_wer") -> dict:
    return {"monitor": monitor, "best_model_path": best}


def test_the_checkpoint_that_is_meant(tmp_path):
    best = save(tmp_path, "epoch=001.ckpt")
    other = save(tmp_path, "step=7.ckpt")
    states = {"a": [1], "b": of_callback(str(other), "step"), "c": of_callback(f"/where/it/was/{best.name}")}
    last = save(tmp_path, "last.ckpt", callbacks=states)
    run = run_in(tmp_path)
    assert run.checkpoint() == run.checkpoint("last") == run_in(tmp_path, "best").checkpoint("last") == last
    assert run.checkpoint("best") == run_in(tmp_path, "best").checkpoint() == best
    assert run.checkpoint("~/x.ckpt") == Path.home() / "x.ckpt"
    newest = [save(tmp_path, f"last-v{version}.ckpt") for version in (9, 10)][1]
    assert run.checkpoint() == newest


@pytest.mark.parametrize(
    ("callbacks", "problem"),
    [
        ({}, "the run kept none (checkpoint.save_top_k=0)"),
        ({"a": of_callback("")}, "the run kept none (checkpoint.save_top_k=0)"),
        ({"a": of_callback("x/epoch=3.ckpt")}, "FOLDER/epoch=3.ckpt is gone"),
        (None, "the run kept none (checkpoint.save_top_k=0)"),
    ],
    ids=["no callback", "none kept", "deleted", "no callbacks"],
)
def test_no_best_checkpoint(tmp_path, callbacks, problem):
    save(tmp_path, "last.ckpt", **({} if callbacks is None else {"callbacks": callbacks}))
    with pytest.raises(DataError) as error:
        run_in(tmp_path).checkpoint("best")
    folder = tmp_path / "checkpoints"
    assert str(error.value) == f"there is no best checkpoint in {folder}: {problem.replace('FOLDER', str(folder))}"


@pytest.mark.parametrize(
    ("callbacks", "problem"),
    [
        ([1], "callbacks must be a mapping, not list"),
        ({"a": of_callback(3)}, "best_model_path must be a text, not 3"),
    ],
)
def test_a_last_checkpoint_that_is_none(tmp_path, callbacks, problem):
    last = save(tmp_path, "last.ckpt", callbacks=callbacks)
    with pytest.raises(DataError) as error:
        run_in(tmp_path).checkpoint("best")
    assert str(error.value) == f"{last} is no checkpoint of train.py: {problem}"


def test_no_last_checkpoint_names_the_others(tmp_path):
    with pytest.raises(DataError) as error:
        run_in(tmp_path).checkpoint()
    assert str(error.value) == f"there is no last.ckpt in {tmp_path / 'checkpoints'}"
    for name in ("b.ckpt", "a.ckpt"):
        save(tmp_path, name)
    with pytest.raises(DataError, match=r"; give the path of another one with --checkpoint: a\.ckpt, b\.ckpt$"):
        run_in(tmp_path).checkpoint("best")


def test_a_run_folder_that_is_none(tmp_path):
    with pytest.raises(DataError, match=f"^run folder {tmp_path / 'lost'} does not exist$"):
        TrainedRun.read(tmp_path / "lost")
    with pytest.raises(DataError, match=r"is no run folder of train\.py: it has no \.hydra/config\.yaml$"):
        TrainedRun.read(tmp_path)


def test_weights_are_read_only_where_they_are_wanted(tmp_path):
    path = save(tmp_path, "a.ckpt", weight=torch.ones(2))
    assert read_checkpoint(path)["weight"].device.type == "cpu"
    assert read_checkpoint(path, "meta")["weight"].device.type == "meta"
    torch.save([1], path)
    with pytest.raises(DataError, match=r"is no checkpoint of train\.py: it holds no mapping$"):
        read_checkpoint(path)


def weights_of(model: JasperCTC) -> dict:
    return {f"model.{name}": value for name, value in model.state_dict().items()}


def test_the_model_of_a_checkpoint(tmp_path):
    model = JasperCTC.from_config(MODEL)
    weights = {**weights_of(model), "train_wer.errors": torch.tensor(1), 3: torch.tensor(1)}
    path = save(tmp_path, "last.ckpt", hyper_parameters={"model": MODEL}, state_dict=weights)
    loaded = load_model(path).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())
    assert run_in(tmp_path, precision="64-true").recognizer(path)._dtype == torch.float64


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {}},
        {"hyper_parameters": {"model": MODEL}},
        {"hyper_parameters": [1], "state_dict": {}},
        {"hyper_parameters": {"modl": MODEL}, "state_dict": {}},
        {"hyper_parameters": {"model": MODEL}, "state_dict": [1]},
    ],
)
def test_a_checkpoint_of_something_else(tmp_path, content):
    path = save(tmp_path, "a.ckpt", **content)
    with pytest.raises(DataError) as error:
        load_model(path)
    assert str(error.value) == f"{path} is no checkpoint of train.py: it lacks hyper_parameters.model or state_dict"


def test_weights_that_do_not_fit_are_said_in_one_short_line(tmp_path):
    path = save(tmp_path, "a.ckpt", hyper_parameters={"model": MODEL}, state_dict={"model.extra": torch.ones(1)})
    with pytest.raises(DataError) as error:
        load_model(path)
    _, _, reason = str(error.value).partition(f"checkpoint {path} does not fit its own config: ")
    assert reason.startswith("Error(s) in loading state_dict for JasperCTC: Missing key(s) in state_dict: ")
    assert len(reason) == 200


def test_names_are_shown_with_bytes_escaped():
    assert [shown("é"), shown("a\udce9"), shown(Path("b"))] == ["é", "a\\udce9", "b"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (None, 30.0),
        ({}, 30.0),
        ({"longest": 2.0}, 5.0),
        ({"longest": 16.7}, 16.7),
        ({"longest": 50.0}, 30.0),
        ({"longest": float("nan")}, 30.0),
        ({"longest": "2"}, 30.0),
        ([2.0], 30.0),
    ],
)
def test_pieces_are_as_long_as_what_the_model_has_learnt_from(tmp_path, data, expected):
    torch.save({} if data is None else {"SpeechDataModule": data}, tmp_path / "a.ckpt")
    run = TrainedRun(tmp_path, None, None)
    assert run.segment_seconds(tmp_path / "a.ckpt") == expected


def test_an_archive_does_not_say_how_long_its_utterances_were(tmp_path):
    assert TrainedRun(tmp_path, None, None).segment_seconds(tmp_path / "a.nemo") == 30.0


def test_channels_are_averaged_on_demand_where_the_run_did_not(tmp_path):
    run = TrainedRun.read(tmp_path / "a.nemo")
    assert (run.data.loading.downmix, run.downmixed().data.loading.downmix) == (False, True)
    assert run.downmixed().folder == run.folder
