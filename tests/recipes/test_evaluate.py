"""The two commands that use a trained model, without one: their arguments, and what they print and write."""

import io
import json
import os
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from speech_files import write_audio

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr import evaluate, transcribe


def test_the_smallest_batch_is_one():
    assert evaluate._positive("1") == 1


@pytest.mark.parametrize(
    ("given", "eval_batch_size", "expected"), [(["--batch-size", "2"], 4, 2), ([], 4, 4), ([], None, 3)]
)
def test_batches_are_as_large_as_said_or_as_in_the_run(tmp_path, monkeypatch, capsys, given, eval_batch_size, expected):
    asked = []
    loading = SimpleNamespace(eval_batch_size=eval_batch_size, batch_size=3, num_workers=5)
    run = SimpleNamespace(
        data=SimpleNamespace(loading=loading),
        checkpoint=lambda which: asked.append(which) or Path("x.ckpt"),
        recognizer=lambda checkpoint, device: (checkpoint, device),
    )
    dataset = SimpleNamespace(utterances=[])
    monkeypatch.setattr(evaluate.TrainedRun, "read", lambda folder: asked.append(folder) or run)
    monkeypatch.setattr(evaluate, "read_set", lambda *args: asked.append(args) or dataset)
    monkeypatch.setattr(evaluate, "transcribe_set", lambda *args: asked.append(args) or [])
    monkeypatch.setattr(evaluate, "count_errors", lambda *args: TOTALS)
    assert evaluate.main(["run", "--out", str(tmp_path / "a.json"), *given]) == 0
    recognizer = (Path("x.ckpt"), "auto")
    assert asked == [Path("run"), None, (run, recognizer, None), (recognizer, dataset, expected, 5)]
    assert json.loads((tmp_path / "a.json").read_text()) == {"checkpoint": "x.ckpt", **TOTALS, "utterances": []}


TOTALS = {
    "manifest": "b\udce9.json",
    "num_utterances": 2,
    "wer": 1 / 3,
    "word_errors": 1,
    "words": 3,
    "cer": 1.125,
    "char_errors": 9,
    "chars": 8,
}


def test_the_lines_that_are_printed(capsys):
    evaluate.show({"checkpoint": "a.ckpt", **TOTALS})
    assert capsys.readouterr().out.splitlines() == [
        "checkpoint  a.ckpt",
        "manifest    b\\udce9.json",
        "utterances  2",
        "WER       33.33 %   1 errors in 3 words",
        "CER      112.50 %   9 errors in 8 characters",
    ]


def test_the_file_that_is_written(tmp_path):
    utterance = SimpleNamespace(audio=Path("a.wav"), offset=0.5, text="\u00e9t\u00e9")
    dataset = SimpleNamespace(utterances=[utterance])
    expected = (
        '{\n  "wer": 0.5,\n  "manifest": "b\\udce9",\n  "utterances": [\n    {\n      "audio_filepath": "a.wav",\n'
        '      "offset": 0.5,\n      "reference": "\u00e9t\u00e9",\n      "hypothesis": "ete"\n    }\n  ]\n}\n'
    )
    evaluate.write(tmp_path / "out.json", {"wer": 0.5, "manifest": "b\udce9"}, dataset, ["ete"])
    assert (tmp_path / "out.json").read_text(encoding="utf-8") == expected
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    evaluate.write(pipe, {"wer": 0.5, "manifest": "b\udce9"}, dataset, ["ete"])
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert os.read(reader, 1000).decode() == expected
    os.close(reader)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("lost/a.json", "the folder of NAME does not exist"),
        (".", "NAME cannot be written: Is a directory"),
        ("a" * 300, "NAME cannot be written: File name too long"),
    ],
)
def test_places_that_cannot_be_written_are_found_before_any_work(tmp_path, name, problem):
    with pytest.raises(ConfigError) as error:
        evaluate.check_out(tmp_path / name)
    assert (error.value.path, error.value.problem) == ("--out", problem.replace("NAME", str(tmp_path / name)))
    evaluate.check_out(tmp_path / "a.json")


COMMON = {
    "RUN": "the run folder of train.py (its hydra.run.dir), or a model without one: a .nemo or .ckpt file",
    "-h, --help": "show this help message and exit",
    "--checkpoint best|last|PATH": "weights of the best epoch by dev WER, of the last one, or in a checkpoint file; "
    "default: those that results.json was measured with (checkpoint.test of the run)",
    "--device {auto,cpu,cuda}": "default: auto, a GPU if there is one",
}
HELP = {
    evaluate: {
        **COMMON,
        "--manifest FILE.json": "measure these utterances instead",
        "--average K": "the mean of the weights of the K last epochs, or K best",
        "--batch-size N": "default: data.eval_batch_size of the run",
        "--out FILE.json": "write the totals and every reference with its hypothesis",
    },
    transcribe: {**COMMON, "FILE": "a recording: WAV, FLAC, Ogg, MP3, ..."},
}


@pytest.mark.parametrize(("command", "arguments"), HELP.items(), ids=["evaluate", "transcribe"])
def test_help(command, arguments, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    usage, *lines = capsys.readouterr().out.splitlines()
    assert usage.startswith(f"usage: {command.__name__.rpartition('.')[2]} [-h] ")
    printed = {
        " ".join(line.split()) for line in "\n".join(lines).replace("\n                        ", " ").split("\n")
    }
    assert {f"{name} {text}" for name, text in arguments.items()} <= printed
    assert (command.__doc__ or "").replace("``", "").partition("\n")[0] in printed


def test_transcribing_one_file_averages_channels_only_where_asked(tmp_path):
    write_audio(tmp_path / "a.wav", channels=2)

    class Hears:
        sample_rate = 8000

        def __call__(self, wave_BS, wave_lens_B):
            return [f"{tuple(wave_BS.shape)} {wave_lens_B.tolist()}"]

    assert transcribe.transcribe(Hears(), tmp_path / "a.wav", downmix=True) == "(1, 8000) [8000]"
    with pytest.raises(DataError, match="has 2 channels"):
        transcribe.transcribe(Hears(), tmp_path / "a.wav")


def test_every_line_is_out_before_the_next_file_is_read(tmp_path, monkeypatch):
    out, told = io.StringIO(), []
    out.flush = lambda: told.append(out.getvalue())
    run = SimpleNamespace(
        data=SimpleNamespace(loading=SimpleNamespace(downmix=True)),
        checkpoint=lambda which: which,
        recognizer=lambda checkpoint, device: (checkpoint, device),
    )
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(transcribe.TrainedRun, "read", lambda folder: run)
    monkeypatch.setattr(transcribe, "transcribe", lambda *args, **options: (told.append((args, options)), "heard")[1])
    assert transcribe.main(["run", "a.wav", "b.wav"]) == 0
    recognizer = (None, "auto")
    assert told[:4] == [
        ((recognizer, Path("a.wav")), {"downmix": True}),
        "a.wav\theard\n",
        ((recognizer, Path("b.wav")), {"downmix": True}),
        "a.wav\theard\nb.wav\theard\n",
    ]


@pytest.mark.parametrize("count", ["1", "0", "-3"])
def test_a_mean_is_of_two_at_least(count, capsys):
    with pytest.raises(SystemExit, match="2"):
        evaluate.main(["run", "--average", count])
    assert f"--average: must be at least 2, not {count}" in capsys.readouterr().err
