"""Runs one after another: the first takes its alphabet from the text and averages; others begin where it ended."""

import json
import logging
from pathlib import Path

import pytest
import torch

from lightning_novograd.recipes.asr import evaluate, export
from lightning_novograd.recipes.asr.training.run import run
from lightning_novograd.recipes.asr.weights import source
from lightning_novograd.recipes.asr.weights.average import average
from lightning_novograd.recipes.common.checkpoints.reading import read_checkpoint

BLOCK = {"filters": 8, "kernel": 5, "separable": True, "residual": True}
MODEL = {
    "labels": "auto",
    "preprocessor": {"features": 16},
    "encoder": {"jasper": [{**BLOCK, "stride": 2, "residual": False}, BLOCK]},
}
TRAINER = {
    "accelerator": "cpu",
    "devices": 1,
    "max_epochs": 3,
    "log_every_n_steps": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def train(run_dir: Path, manifest: Path, **changes) -> dict:
    """A run as train.py has it, with Hydra's copy of its config."""
    data = {"name": "manifest", **dict.fromkeys(("train", "dev", "test"), str(manifest)), "batch_size": 8}
    config = {
        "model": MODEL,
        "data": data,
        "optim": {"name": "novograd", "lr": 0.02},
        "trainer": TRAINER,
        **{"logger": {}, "checkpoint": {}, "large_batch": {}, "num_samples": 0},
        **changes,
    }
    (run_dir / ".hydra").mkdir(parents=True)
    (run_dir / ".hydra" / "config.yaml").write_text(json.dumps(config))  # which is YAML
    return run(config, run_dir)


@pytest.fixture(scope="module")
def first(tiny_corpus, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("first") / "run"
    train(run_dir, tiny_corpus, optim={"name": "novograd", "lr": 0.02, "ema": 0.5}, checkpoint={"average": 2})
    return run_dir


def weights(path: Path, key: str = "state_dict") -> dict[str, torch.Tensor]:
    return {n.removeprefix("model."): v for n, v in read_checkpoint(path)[key].items() if n.startswith("model.")}


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_alphabet_is_that_of_the_text_and_travels_with_the_run(first):
    assert (first / "labels.txt").read_text() == " \na\nb\n"
    saved = read_checkpoint(first / "checkpoints" / "last.ckpt")["hyper_parameters"]["model"]
    assert saved["labels"] == [" ", "a", "b"]


def test_the_moving_average_is_what_a_checkpoint_has_as_weights(first, tmp_path):
    last = first / "checkpoints" / "last.ckpt"
    assert not equal(weights(last), weights(last, "current_model_state"))
    assert equal(source.load(last).state_dict(), weights(last))
    assert export.main([str(first), "--checkpoint", "last", "--out", str(tmp_path / "x.nemo")]) == 0
    assert equal(source.load(tmp_path / "x.nemo").state_dict(), weights(last))


def test_the_mean_of_the_last_epochs_is_measured_and_kept(first, tmp_path, capsys):
    names = {path.name for path in (first / "checkpoints").iterdir()}
    assert {"recent-001.ckpt", "recent-002.ckpt", "last.ckpt", "average.ckpt"} <= names
    mean = average([first / "checkpoints" / f"recent-00{epoch}.ckpt" for epoch in (1, 2)])["state_dict"]
    assert equal(
        weights(first / "checkpoints" / "average.ckpt"), {n.removeprefix("model."): v for n, v in mean.items()}
    )
    results = json.loads((first / "results.json").read_text())
    for arguments in ([], ["--average", "2"], ["--average", "2", "--checkpoint", "last"]):
        out = tmp_path / "out.json"
        assert evaluate.main([str(first), "--device", "cpu", "--out", str(out), *arguments]) == 0
        totals = json.loads(out.read_text())
        assert (totals["wer"], totals["cer"]) == (results["test_wer"], results["test_cer"])
    assert totals["checkpoint"] == f"mean of {first}/checkpoints/recent-002.ckpt, {first}/checkpoints/recent-001.ckpt"


@pytest.mark.parametrize("labels", ["auto", ["b", "a", " ", "c"]])
def test_a_run_begins_with_the_weights_of_another(first, tiny_corpus, tmp_path, labels, caplog):
    """With an LR of 0 and everything frozen but the decoder's bias they are still there at its end."""
    source_of = str(first / "checkpoints" / "last.ckpt")
    with caplog.at_level(logging.INFO, logger="lightning_novograd"):
        results = train(
            tmp_path / "run",
            tiny_corpus,
            model={**MODEL, "labels": labels},
            optim={"name": "sgd", "lr": 0.0},
            init_from=source_of,
            freeze=["encoder.*", "decoder.*.weight"],
            early_stopping={"patience": 1},
        )
    assert results["epochs"] == 2, "nothing improves, so it ends early"
    assert results["model_parameters"] == (3 if labels == "auto" else 4) + 1
    begun, ended = weights(first / "checkpoints" / "last.ckpt"), weights(tmp_path / "run" / "checkpoints" / "last.ckpt")
    kept = {name for name in begun if torch.equal(begun[name], ended[name])} if labels == "auto" else set(begun)
    assert kept == set(begun), "with the same alphabet the decoder's too"
    encoder = {name: value for name, value in ended.items() if name.startswith("encoder.")}
    assert equal(encoder, {name: begun[name] for name in encoder})
    assert ("so the decoder begins anew" in caplog.text) == (labels != "auto")


def test_a_run_that_goes_on_keeps_its_alphabet_and_its_moving_average(first, tiny_corpus, tmp_path):
    """The alphabet of `auto` is the saved one, even if the text has fewer characters now."""
    lines = [json.loads(line) for line in tiny_corpus.read_text().splitlines()]
    fewer = [
        {**line, "audio_filepath": str(tiny_corpus.parent / line["audio_filepath"]), "text": "ab"} for line in lines
    ]
    manifest = tmp_path / "fewer.json"
    manifest.write_text("\n".join(map(json.dumps, fewer)))
    train(
        tmp_path / "run",
        manifest,
        optim={"name": "novograd", "lr": 0.02, "ema": 0.5},
        trainer={**TRAINER, "max_epochs": 4},
        resume_from=str(first / "checkpoints" / "last.ckpt"),
    )
    assert (tmp_path / "run" / "labels.txt").read_text() == " \na\nb\n"
    last = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert (last["epoch"], "averaging_state" in last) == (3, True)
    updates = last["averaging_state"]["n_averaged"]
    assert int(updates) == last["global_step"], "it went on with the average of the first run"
