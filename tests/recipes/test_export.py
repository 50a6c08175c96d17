"""The export command: which file is written of which weights, and mistakes in one line."""

import pytest
import torch
from conftest import GOLDEN

from lightning_novograd.recipes.asr import export
from lightning_novograd.recipes.asr.weights.source import load

TINY = GOLDEN / "models" / "quartznet_tiny.nemo"


def test_a_model_is_written_and_what_was_done_is_said(tmp_path, capsys):
    out = tmp_path / "x.nemo"
    assert export.main([str(TINY), "--out", str(out)]) == 0
    assert capsys.readouterr().out == (
        f"{out}: weights of {TINY}; read again, its log-probabilities differ by at most 0\n"
    )
    assert all(torch.equal(a, b) for a, b in zip(load(out).parameters(), load(TINY).parameters(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "asked"), [(["a.pt2"], "torch"), (["a.onnx"], "onnx"), (["a.pt2", "--format", "onnx"], "onnx")]
)
def test_the_format_is_that_of_the_suffix_or_as_said(tmp_path, monkeypatch, arguments, asked):
    written = []
    writers = {name: lambda model, path, name=name: written.append((name, path)) or 0.25 for name in export.WRITERS}
    monkeypatch.setattr(export, "WRITERS", writers)
    out, *more = arguments
    assert export.main([str(TINY), "--out", str(tmp_path / out), *more]) == 0
    assert written == [(asked, tmp_path / out)]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ["lost", "--out", "TMP/x.nemo"],
            "lost does not exist; give a run folder of train.py, a .ckpt or a .nemo file",
        ),
        ([TINY, "--out", "TMP/x.bin"], "--out: 'TMP/x.bin' has none of the suffixes .nemo, .onnx, .pt2: say --format"),
        ([TINY, "--out", "TMP/lost/x.nemo"], "TMP/lost/x.nemo: there is no folder 'TMP/lost'; make it first"),
        (
            [TINY, "--checkpoint", "last", "--out", "TMP/x.nemo"],
            f"{TINY} is one file: there is no checkpoint 'last' to",
        ),
        (["TMP", "--checkpoint", "last", "--out", "TMP/x.nemo"], "there is no last.ckpt in TMP/checkpoints"),
        (["TMP", "--checkpoint", "TMP/lost.ckpt", "--out", "TMP/x.nemo"], "checkpoint TMP/lost.ckpt does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(tmp_path, capsys, arguments, problem):
    assert export.main([str(argument).replace("TMP", str(tmp_path)) for argument in arguments]) == 1
    printed = capsys.readouterr().err
    assert printed.replace(str(tmp_path), "TMP").startswith(f"error: {problem}")
    assert printed.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_archive_that_would_hold_other_weights_is_not_written(tmp_path, monkeypatch, capsys):
    other = load(GOLDEN / "models" / "quartznet_tiny.nemo")
    with torch.no_grad():
        next(other.parameters()).add_(1)
    monkeypatch.setattr(export, "load_nemo", lambda path: other)
    assert export.main([str(TINY), "--out", str(tmp_path / "x.nemo")]) == 1
    assert "would hold other weights than the model" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
