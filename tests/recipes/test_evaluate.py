"""The two commands that use a trained model, without one: their arguments, and what they print and write."""

import io
import json
import os
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tone_model
from speech_files import write_audio
from tone_model import ToneRecognizer

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr import evaluate, transcribe
from lightning_novograd.recipes.asr.recognition import transcription


@pytest.mark.parametrize(
    ("given", "eval_batch_size", "expected"), [(["--batch-size", "2"], 4, 2), ([], 4, 4), ([], None, 3)]
)
def test_batches_are_as_large_as_said_or_as_in_the_run(tmp_path, monkeypatch, capsys, given, eval_batch_size, expected):
    class Pair(tuple):
        alphabet = None

    asked = []
    loading = SimpleNamespace(eval_batch_size=eval_batch_size, batch_size=3, num_workers=5)
    run = SimpleNamespace(
        data=SimpleNamespace(loading=loading),
        checkpoint=lambda which: asked.append(which) or Path("x.ckpt"),
        recognizer=lambda checkpoint, device: Pair((checkpoint, device)),
    )
    dataset = SimpleNamespace(utterances=[])
    monkeypatch.setattr(evaluate.TrainedRun, "read", lambda folder: asked.append(folder) or run)
    monkeypatch.setattr(evaluate, "read_set", lambda *args: asked.append(args) or dataset)
    monkeypatch.setattr(evaluate, "transcribe_set", lambda *args: asked.append(args) or [])
    monkeypatch.setattr(evaluate, "count_errors", lambda *args: TOTALS)
    assert evaluate.main(["run", "--out", str(tmp_path / "a.json"), *given]) == 0
    recognizer = (Path("x.ckpt"), "auto")
    assert asked == [Path("run"), None, (run, recognizer, None), (recognizer, dataset, expected, 5)]
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "checkpoint": "x.ckpt",
        **TOTALS,
        "decoder": "greedy",
        "real_time_factor": None,
        "utterances": [],
    }


TOTALS = {
    "manifest": "b\udce9.json",
    "num_utterances": 2,
    "wer": 1 / 3,
    "word_errors": 1,
    "words": 3,
    "cer": 1.125,
    "char_errors": 9,
    "chars": 8,
    "word_insertions": 0,
    "word_deletions": 0,
    "word_substitutions": 1,
    "char_insertions": 4,
    "char_deletions": 3,
    "char_substitutions": 2,
    "wer_interval": None,
    "audio_seconds": 0.0,
}


def test_the_lines_that_are_printed(capsys):
    totals = {"checkpoint": "a.ckpt", **TOTALS, "decoder": "greedy", "real_time_factor": None}
    lines = [
        "checkpoint  a.ckpt",
        "manifest    b\\udce9.json",
        "decoder     greedy",
        "utterances  2",
        "WER       33.33 %   1 errors in 3 words: 1 substituted, 0 deleted, 0 inserted",
        "CER      112.50 %   9 errors in 8 characters: 2 substituted, 3 deleted, 4 inserted",
    ]
    evaluate.show(totals)
    assert capsys.readouterr().out.splitlines() == lines
    evaluate.show({**totals, "wer_interval": (0.1, 0.625), "real_time_factor": 0.125, "audio_seconds": 20.04})
    assert capsys.readouterr().out.splitlines() == [
        *lines,
        "interval    10.00 to 62.50 % WER, 95 %, bootstrap",
        "RTF       0.125     20.0 s of audio",
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


COMMON = {
    "RUN": "the run folder of train.py (its hydra.run.dir), or a model without one: a .nemo or .ckpt file",
    "-h, --help": "show this help message and exit",
    "--checkpoint best|last|PATH": "weights of the best epoch by dev WER, of the last one, or in a checkpoint file; "
    "default: those that results.json was measured with (checkpoint.test of the run)",
    "--downmix": "average the channels of a recording, as data.downmix=true of a run does",
    "--device {auto,cpu,cuda}": "default: auto, a GPU if there is one",
}
HELP = {
    evaluate: {
        **COMMON,
        "--manifest FILE.json": "measure these utterances instead",
        "--average K": "the mean of the weights of the K last epochs, or K best",
        "--batch-size N": "default: data.eval_batch_size of the run",
        "--out FILE.json": "write the totals and every reference with its hypothesis",
        "--report FILE.html": "write a page: errors by length, speaker and word, the worst ones",
        "--lm FILE.arpa|FILE.bin": "beam search with this KenLM n-gram model",
    },
    transcribe: {
        **COMMON,
        "FILE": "a recording: WAV, FLAC, Ogg, MP3, ...",
        "--out FOLDER": "for srt: write FILE.srt there for each FILE",
        "--batch-size N": "recordings, or pieces of them, at once; default: 1",
        "--beam-size N": "hypotheses of the beam search; default: 100",
        "--lm-weight W": "weight of the language model; default: 0.5",
        "--word-bonus B": "added to the score for each word; default: 1.5",
    },
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


def fake_run(monkeypatch, downmix: bool = True, recognizer: object = None):
    run = SimpleNamespace(
        data=SimpleNamespace(loading=SimpleNamespace(downmix=downmix)),
        checkpoint=lambda which: which,
        recognizer=lambda checkpoint, device: recognizer or ToneRecognizer(),
        segment_seconds=lambda checkpoint: 30.0,
    )
    monkeypatch.setattr(transcribe.TrainedRun, "read", lambda folder: run)


@pytest.mark.parametrize("seconds", [1.0, 40.0])
def test_transcribing_one_file_averages_channels_only_where_asked(tmp_path, monkeypatch, capsys, seconds):
    write_audio(tmp_path / "a.wav", seconds, channels=2)
    recognizer = ToneRecognizer()
    fake_run(monkeypatch, downmix=True, recognizer=recognizer)
    assert transcribe.main(["run", str(tmp_path / "a.wav")]) == 0
    assert sum(rows * samples for rows, samples in recognizer.batches) >= seconds * recognizer.sample_rate
    fake_run(monkeypatch, downmix=False)
    assert transcribe.main(["run", str(tmp_path / "a.wav")]) == 1
    assert "has 2 channels" in capsys.readouterr().err


def test_every_line_is_out_before_the_next_file_is_read(tmp_path, monkeypatch):
    out, told = io.StringIO(), []
    out.flush = lambda: told.append(out.getvalue())
    monkeypatch.setattr(sys, "stdout", out)
    fake_run(monkeypatch)
    read = transcription.read_segments
    monkeypatch.setattr(
        transcription, "read_segments", lambda file, *rest: told.append((file, *rest)) or read(file, *rest)
    )
    a, b = (tone_model.write(tmp_path / f"{word}.wav", tone_model.speak([word])[0]) for word in ("ab", "ba"))
    assert transcribe.main(["run", str(a), str(b)]) == 0
    assert told[:4] == [
        (a, 1000, True, 30.0),
        f"{a}\t ab\n",
        (b, 1000, True, 30.0),
        f"{a}\t ab\n{b}\t ba\n",
    ]


def test_the_formats_and_the_time_that_it_took(tmp_path, monkeypatch, capsys):
    fake_run(monkeypatch)
    files = [tone_model.write(tmp_path / f"{word}.wav", tone_model.speak([word, "b"])[0]) for word in ("ab", "ba")]
    names = [str(file) for file in files]
    assert transcribe.main(["run", *names, "--format", "json", "--batch-size", "4"]) == 0
    printed = capsys.readouterr()
    documents = [json.loads(line) for line in printed.out.splitlines()]
    assert [document["file"] for document in documents] == names
    assert [[word["word"] for word in document["words"]] for document in documents] == [["ab", "b"], ["ba", "b"]]
    [line] = printed.err.splitlines()
    assert line.startswith("2 recordings, 2.7 s of audio in ")
    assert float(line.rpartition("real-time factor ")[2]) >= 0
    assert transcribe.main(["run", names[0], "--format", "srt"]) == 0
    one = capsys.readouterr().out
    assert one.splitlines()[::2] == ["1", "ab b"]
    (tmp_path / "subtitles").mkdir()
    assert transcribe.main(["run", *names, "--format", "srt", "--out", str(tmp_path / "subtitles")]) == 0
    assert capsys.readouterr().out == ""
    assert {path.name: path.read_text().splitlines()[2] for path in (tmp_path / "subtitles").iterdir()} == {
        "ab.srt": "ab b",
        "ba.srt": "ba b",
    }


def test_a_few_samples_take_no_time_to_be_compared_with(tmp_path, monkeypatch, capsys):
    fake_run(monkeypatch)
    file = tone_model.write(tmp_path / "a.wav", tone_model.tone(100, 0.005), 100_000)
    assert transcribe.main(["run", str(file)]) == 0
    assert capsys.readouterr().err.startswith("1 recording, 0.0 s of audio in ")


def test_both_commands_decode_as_they_are_told(tmp_path, monkeypatch, capsys):
    recognizer = ToneRecognizer()
    fake_run(monkeypatch, recognizer=recognizer)
    asked = []
    for command in (transcribe, evaluate):
        monkeypatch.setattr(
            command, "make_decoder", lambda arguments, alphabet: asked.append((arguments.lm, alphabet)) or 7
        )
    file = tone_model.write(tmp_path / "a.wav", tone_model.speak(["ab"])[0])
    assert transcribe.main(["run", str(file), "--lm", "x.arpa"]) == 0
    assert recognizer.decoder == 7
    other = ToneRecognizer()
    fake_run(monkeypatch, recognizer=other)
    monkeypatch.setattr(
        evaluate, "read_set", lambda *args: (_ for _ in ()).throw(ConfigError("", "the decoder is set"))
    )
    assert evaluate.main(["run", "--lm", "y.arpa"]) == 1
    assert other.decoder == 7
    assert asked == [(Path("x.arpa"), recognizer.alphabet), (Path("y.arpa"), other.alphabet)]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["a.wav", "b.wav", "--format", "srt"], "--format: srt of several files needs --out FOLDER, one file for each"),
        (["a.wav", "--out", "."], "--out: is for --format srt; text goes to stdout, a line for each file"),
        (["a.wav", "--format", "srt", "--out", "lost"], "--out: the folder lost does not exist"),
        (["a.wav", "--format", "srt", "--out", "a" * 300], f"--out: the folder {'a' * 300} does not exist"),
        (["a.wav", "x/a.ogg", "--format", "srt", "--out", "."], "--out: 2 of the files would be written to a.srt"),
        (["a.wav", "--lm-weight", "1"], "--lm-weight: has no effect without --lm"),
        (["a.wav", "--word-bonus", "1"], "--word-bonus: has no effect without --lm"),
        (["a.wav", "--beam-size", "0"], "--beam-size: must be at least 1, not 0"),
        (["a.wav", "--lm", "lost.arpa"], "language model lost.arpa does not exist"),
    ],
)
def test_arguments_that_cannot_be_are_one_line(monkeypatch, capsys, arguments, problem):
    fake_run(monkeypatch)
    assert transcribe.main(["run", *arguments]) == 1
    assert capsys.readouterr().err == f"error: {problem}\n"


@pytest.mark.parametrize("seconds", ["4.9", "nan", "inf", "x"])
def test_pieces_have_a_length_that_words_fit_in(capsys, seconds):
    with pytest.raises(SystemExit, match="2"):
        transcribe.main(["run", "a.wav", "--segment-seconds", seconds])
    assert "--segment-seconds" in capsys.readouterr().err


@pytest.mark.parametrize("count", ["1", "0", "-3"])
def test_a_mean_is_of_two_at_least(count, capsys):
    with pytest.raises(SystemExit, match="2"):
        evaluate.main(["run", "--average", count])
    assert f"--average: must be at least 2, not {count}" in capsys.readouterr().err
