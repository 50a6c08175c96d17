"""The two commands that use a trained model: their numbers are those of training, and mistakes are one line."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from arpa import write_arpa
from conftest import ROOT
from omegaconf import OmegaConf
from speech_files import write_audio, write_manifest

from lightning_novograd.recipes.asr import evaluate, transcribe


def write_set(folder: Path, name: str, size: int) -> Path:
    """Lengths, sample rates and channels differ; so do the texts."""
    entries = []
    for i in range(size):
        seconds, rate, channels = 0.6 + 0.11 * (i * 5 % size), (16000, 8000)[i % 3 == 0], 1 + (i % 4 == 0)
        write_audio(folder / f"{name}_{i}.wav", seconds, rate, channels, seed=i)
        entries.append({"audio_filepath": f"{name}_{i}.wav", "duration": seconds, "text": f"{'abcdefg'[i % 7]} it"})
    return write_manifest(folder / f"{name}.json", entries)


def python(script: str, *arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "asr" / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for name, size in (("train", 8), ("dev", 7), ("test", 9)):
        write_set(folder, name, size)
    return folder


@pytest.fixture(scope="module")
def run_dir(corpus, tmp_path_factory) -> Path:
    """As the command leaves it, then moved. The rate is so small that all kinds of letters are heard, not blanks."""
    made = tmp_path_factory.mktemp("runs") / "made"
    done = python(
        "train.py",
        *("model=quartznet_small", "data=manifest", *(f"data.{p.stem}={p}" for p in corpus.glob("*.json"))),
        *("data.downmix=true", "data.batch_size=4", "data.eval_batch_size=4", "data.num_workers=0", "optim.lr=0.001"),
        *("trainer.max_epochs=3", "trainer.precision=bf16-mixed", "trainer.enable_progress_bar=false"),
        f"hydra.run.dir={made}",
    )
    assert done.returncode == 0, done.stderr
    return made.rename(made.with_name("moved"))


@pytest.fixture
def copied_run(run_dir, tmp_path) -> Path:
    """To be spoilt."""
    return Path(shutil.copytree(run_dir, tmp_path / "run"))


def measured(capsys, out: Path, *arguments: str | Path) -> dict:
    assert evaluate.main([*map(str, arguments), "--device", "cpu", "--out", str(out)]) == 0, capsys.readouterr().err
    return json.loads(out.read_text())


def test_the_numbers_are_those_of_results_json(run_dir, corpus, tmp_path, capsys):
    results = json.loads((run_dir / "results.json").read_text())
    test = measured(capsys, tmp_path / "out.json", run_dir)
    assert (test["wer"], test["cer"]) == (results["test_wer"], results["test_cer"])
    dev = measured(capsys, tmp_path / "out.json", run_dir, "--checkpoint", "last", "--manifest", corpus / "dev.json")
    assert (dev["wer"], dev["cer"]) == (results["dev_wer"], results["dev_cer"])
    assert test["cer"] != dev["cer"]
    assert (test["num_utterances"], dev["num_utterances"]) == (9, 7)


def test_the_best_checkpoint_is_that_of_the_best_epoch(run_dir, corpus, tmp_path, capsys):
    with (run_dir / "metrics.csv").open() as file:
        epochs = [row for row in csv.DictReader(file) if row["dev_wer"]][:3]
    best = min(epochs, key=lambda row: float(row["dev_wer"]))
    [path] = (run_dir / "checkpoints").glob(f"epoch{int(best['epoch']):03d}-*.ckpt")
    dev = measured(capsys, tmp_path / "out.json", run_dir, "--checkpoint", "best", "--manifest", corpus / "dev.json")
    assert (dev["checkpoint"], dev["cer"]) == (str(path), float(best["dev_cer"]))
    assert dev["cer"] != float(epochs[-1]["dev_cer"])
    by_path = measured(capsys, tmp_path / "out.json", run_dir, "--checkpoint", path, "--manifest", corpus / "dev.json")
    assert by_path.pop("real_time_factor") > 0
    assert by_path == {key: value for key, value in dev.items() if key != "real_time_factor"}


def test_a_run_that_tested_with_the_best_is_evaluated_with_the_best(copied_run, tmp_path, capsys):
    config = OmegaConf.load(copied_run / ".hydra" / "config.yaml")
    OmegaConf.update(config, "checkpoint.test", "best")
    OmegaConf.save(config, copied_run / ".hydra" / "config.yaml")
    assert Path(measured(capsys, tmp_path / "out.json", copied_run)["checkpoint"]).name.startswith("epoch")


def test_without_a_test_set_it_is_the_dev_set(copied_run, corpus, tmp_path, capsys):
    config = OmegaConf.load(copied_run / ".hydra" / "config.yaml")
    OmegaConf.update(config, "data.test", None)
    OmegaConf.save(config, copied_run / ".hydra" / "config.yaml")
    assert measured(capsys, tmp_path / "out.json", copied_run)["manifest"] == str(corpus / "dev.json")


def test_last_is_that_of_the_last_run_in_the_folder(copied_run, tmp_path, capsys):
    checkpoints = copied_run / "checkpoints"
    for name in ("last-v1.ckpt", "last-v2.ckpt", "last-v10.ckpt"):
        shutil.copy(checkpoints / "last.ckpt", checkpoints / name)
    assert Path(measured(capsys, tmp_path / "out.json", copied_run)["checkpoint"]).name == "last-v10.ckpt"


def test_what_is_printed_and_written(run_dir, corpus, tmp_path, capsys):
    before = sorted(run_dir.rglob("*"))
    out = measured(capsys, tmp_path / "out.json", run_dir, "--batch-size", "2")
    assert sorted(run_dir.rglob("*")) == before
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == [
        "checkpoint", "manifest", "decoder", "utterances", "WER", "CER", "interval", "RTF"
    ]  # fmt: skip
    assert f"{out['word_errors']} errors in {out['words']} words" in printed[4]
    kinds = [out[f"word_{kind}"] for kind in ("insertions", "deletions", "substitutions")]
    assert sum(kinds) == out["word_errors"]
    assert out["wer_interval"][0] <= out["wer"] <= out["wer_interval"][1]
    assert out["real_time_factor"] > 0
    rows = [json.loads(line) for line in (corpus / "test.json").read_text().splitlines()]
    assert [u["reference"] for u in out["utterances"]] == [row["text"] for row in rows]
    assert [Path(u["audio_filepath"]).name for u in out["utterances"]] == [row["audio_filepath"] for row in rows]
    # each hypothesis is that of its own file: alone it is transcribed the same
    files = [u["audio_filepath"] for u in out["utterances"]]
    assert transcribe.main([str(run_dir), "--device", "cpu", *files]) == 0
    lines = [f"{file}\t{u['hypothesis']}" for file, u in zip(files, out["utterances"], strict=True)]
    assert capsys.readouterr().out.splitlines() == lines
    assert len({u["hypothesis"] for u in out["utterances"]}) > 5


def test_the_report_shows_what_was_measured(run_dir, tmp_path, capsys):
    results = json.loads((run_dir / "results.json").read_text())
    published = {"source": "A paper", "wer": {"test": 0.125, "other": 0.5}}
    (run_dir / "results.json").write_text(json.dumps({**results, "published": published}))
    try:
        out = measured(capsys, tmp_path / "out.json", run_dir, "--report", tmp_path / "report.html")
    finally:
        (run_dir / "results.json").write_text(json.dumps(results))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for text in (f"{100 * out['wer']:.2f}", "greedy", "A paper", "12.50", "last.ckpt", "test_0.wav", "By length"):
        assert text in page, text
    assert page.count("<audio") == page.count("<img") == 9
    rendered = [u["reference"].split()[0] in page for u in out["utterances"]]
    assert all(rendered)


def test_a_text_too_long_for_ctc_is_measured(run_dir, corpus, tmp_path, capsys):
    write_audio(tmp_path / "a.wav", 0.1)
    manifest = write_manifest(
        tmp_path / "a.json", [{"audio_filepath": "a.wav", "duration": 0.1, "text": "far too long for ten frames"}]
    )
    assert measured(capsys, tmp_path / "out.json", run_dir, "--manifest", manifest)["words"] == 6


def test_files_are_transcribed_one_by_one_on_the_command_line(run_dir, corpus, tmp_path):
    soundfile.write(tmp_path / "short.flac", [0.1] * 5, 16000)
    (tmp_path / "text.wav").write_text("no audio")
    files = [corpus / "test_1.wav", tmp_path / "nowhere.wav", tmp_path / "text.wav", tmp_path / "short.flac"]
    done = python("transcribe.py", run_dir, *files, "--checkpoint", "best")
    assert done.returncode == 1
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [str(files[0]), str(files[3])]
    assert lines[0][1]
    assert lines[1][1] == ""
    *errors, time = done.stderr.splitlines()
    assert errors == [
        f"error: audio file {files[1]} does not exist",
        f"error: audio file {files[2]} is corrupt: Format not recognised.",
    ]
    assert time.startswith("2 recordings, ")
    assert "real-time factor" in time


@pytest.mark.slow
def test_evaluate_runs_as_a_file(run_dir):
    done = python("evaluate.py", run_dir)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 8), done.stderr
    assert "test set: 9 utterances" in done.stderr


def spoil(run: Path, how: str) -> None:
    checkpoints = run / "checkpoints"
    if how == "no config":
        shutil.rmtree(run / ".hydra")
    elif how == "bad config":
        (run / ".hydra" / "config.yaml").write_text("a: [")
    elif how == "no checkpoints":
        shutil.rmtree(checkpoints)
    elif how == "no last":
        (checkpoints / "last.ckpt").unlink()
    elif how == "no best":
        for path in checkpoints.glob("epoch*"):
            path.unlink()
    elif how == "foreign":
        torch.save({"state_dict": {}}, run / "foreign.ckpt")
    elif how == "code":
        torch.save({"state_dict": print}, run / "code.ckpt")
    elif how == "other model":
        checkpoint = torch.load(checkpoints / "last.ckpt", weights_only=True)
        del checkpoint["state_dict"]["model.decoder.decoder_layers.0.weight"]
        torch.save(checkpoint, run / "other.ckpt")


@pytest.mark.parametrize(
    ("how", "arguments", "message"),
    [
        ("no config", [], "error: RUN is no run folder of train.py: it has no .hydra/config.yaml"),
        ("bad config", [], "error: RUN/.hydra/config.yaml: is not YAML: line "),
        ("no checkpoints", [], "error: there is no last.ckpt in RUN/checkpoints"),
        ("no last", [], "error: there is no last.ckpt in RUN/checkpoints; give the path of another one with --check"),
        ("no best", ["--checkpoint", "best"], "error: there is no best checkpoint in RUN/checkpoints: RUN/check"),
        ("", ["--checkpoint", "RUN/lost.ckpt"], "error: checkpoint RUN/lost.ckpt does not exist"),
        ("", ["--checkpoint", "RUN/checkpoints"], "error: checkpoint RUN/checkpoints cannot be read: [Errno 21]"),
        ("", ["--checkpoint", "RUN/train.log"], "error: RUN/train.log is no checkpoint, or holds more than plain data"),
        ("code", ["--checkpoint", "RUN/code.ckpt"], "error: RUN/code.ckpt is no checkpoint, or holds more than plain"),
        ("foreign", ["--checkpoint", "RUN/foreign.ckpt"], "error: RUN/foreign.ckpt is no checkpoint of train.py: it"),
        ("other model", ["--checkpoint", "RUN/other.ckpt"], "error: checkpoint RUN/other.ckpt does not fit its own"),
        ("", ["--manifest", "RUN/lost.json"], "error: manifest RUN/lost.json does not exist"),
        ("", ["--out", "RUN/lost/out.json"], "error: --out: the folder of RUN/lost/out.json does not exist"),
        ("", ["--out", "RUN"], "error: --out: RUN cannot be written: Is a directory"),
        ("", ["--report", "RUN"], "error: --report: RUN cannot be written: Is a directory"),
        ("", ["--lm-weight", "1"], "error: --lm-weight: has no effect without --lm"),
        ("", ["--tune"], "error: --tune: has no effect without --lm"),
        (
            "",
            ["--tune", "--lm", "a.arpa", "--word-bonus", "1"],
            "error: --word-bonus: has no effect with --tune, which",
        ),
        pytest.param(
            *("", ["--device", "cuda"], "error: --device: is cuda, but this machine has no CUDA device"),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value)[:20],
)
def test_a_mistake_is_one_line(copied_run, capsys, how, arguments, message):
    spoil(copied_run, how)
    arguments = [argument.replace("RUN", str(copied_run)) for argument in arguments]
    assert evaluate.main([str(copied_run), "--device", "cpu", *arguments]) == 1
    printed = capsys.readouterr().err.replace(str(copied_run), "RUN")
    assert printed.startswith(message)
    assert printed.count("\n") == 1


def test_transcribing_without_a_run(tmp_path, capsys):
    assert transcribe.main([str(tmp_path / "lost"), "a.wav"]) == 1
    assert capsys.readouterr().err == f"error: run folder {tmp_path / 'lost'} does not exist\n"


def test_several_channels_are_refused_unless_the_run_averaged_them(copied_run, corpus, capsys):
    config = OmegaConf.load(copied_run / ".hydra" / "config.yaml")
    OmegaConf.update(config, "data.downmix", False)
    OmegaConf.save(config, copied_run / ".hydra" / "config.yaml")
    assert transcribe.main([str(copied_run), "--device", "cpu", str(corpus / "test_0.wav")]) == 1
    assert "has 2 channels" in capsys.readouterr().err


def test_batch_size_is_positive(run_dir, capsys):
    with pytest.raises(SystemExit, match="2"):
        evaluate.main([str(run_dir), "--batch-size", "0"])
    assert "--batch-size: must be at least 1, not 0" in capsys.readouterr().err


@pytest.fixture
def arpa(tmp_path):
    pytest.importorskip("flashlight.lib.text.decoder.kenlm", reason="flashlight-text is not installed")
    words = [*"abcdefg", "it"]
    return write_arpa(tmp_path / "lm.arpa", {(w,): (-1.0, 0.0) for w in (*words, "<unk>", "<s>", "</s>")})


def test_weights_are_tuned_on_the_dev_set_and_are_those_of_transcribe(run_dir, corpus, arpa, tmp_path, capsys):
    tuned = measured(capsys, tmp_path / "out.json", run_dir, "--tune", "--lm", arpa, "--beam-size", "5")
    printed = capsys.readouterr().out.splitlines()
    assert tuned["manifest"] == str(corpus / "dev.json")
    assert tuned["tuning"]["set"] == "the dev set of the run"
    best, trials = tuned["tuning"]["best"], tuned["tuning"]["trials"]
    assert best == min(trials, key=lambda trial: (trial["wer"], trial["cer"]))
    assert (best["wer"], best["cer"]) == (tuned["wer"], tuned["cer"])
    assert printed[0] == "lm-weight  word-bonus      WER      CER"
    assert [line.endswith("best") for line in printed[1 : 1 + len(trials)]] == [trial == best for trial in trials]
    assert printed[1 + len(trials)] == "tuned on    the dev set of the run; measure the weights on another set"
    name, command = printed[2 + len(trials)].split("    ")
    assert (name, command.split()[:4]) == (
        "use them",
        ["python", "recipes/asr/transcribe.py", str(run_dir), "FILE..."],
    )
    files = [u["audio_filepath"] for u in tuned["utterances"]]
    assert transcribe.main([str(run_dir), "--device", "cpu", *command.split()[4:], *files]) == 0
    texts = [line.partition("\t")[2] for line in capsys.readouterr().out.splitlines()]
    assert texts == [u["hypothesis"] for u in tuned["utterances"]]


def test_weights_are_not_tuned_on_the_test_set(run_dir, corpus, arpa, tmp_path, capsys):
    (tmp_path / "link.json").symlink_to(corpus / "test.json")
    for name in (corpus / "test.json", tmp_path / "link.json"):
        assert evaluate.main([str(run_dir), "--tune", "--lm", str(arpa), "--manifest", str(name)]) == 1
        assert f"error: --manifest: {name} is the test set of {run_dir}" in capsys.readouterr().err
    other = shutil.copy(corpus / "train.json", corpus / "other.json")
    tuned = measured(capsys, tmp_path / "out.json", run_dir, "--tune", "--lm", arpa, "--manifest", other)
    assert (tuned["tuning"]["set"], tuned["manifest"]) == ("--manifest", str(other))
    bare = run_dir / "checkpoints" / "last.ckpt"
    assert evaluate.main([str(bare), "--tune", "--lm", str(arpa)]) == 1
    assert "error: --manifest: is needed" in capsys.readouterr().err


def test_texts_of_a_bare_checkpoint_in_the_case_and_form_of_its_alphabet(run_dir, corpus, tmp_path, capsys):
    rows = [json.loads(line) for line in (corpus / "dev.json").read_text().splitlines()]
    shouted = write_manifest(corpus / "shouted.json", [{**row, "text": row["text"].upper()} for row in rows])
    bare = run_dir / "checkpoints" / "last.ckpt"
    arguments = ["--device", "cpu", "--downmix", "--manifest"]
    assert evaluate.main([str(bare), *arguments, str(shouted)]) == 1
    assert "not in the alphabet" in capsys.readouterr().err
    lowered = measured(
        capsys, tmp_path / "a.json", bare, "--downmix", "--manifest", shouted, "--case", "lower", "--unicode", "NFC"
    )
    plain = measured(capsys, tmp_path / "b.json", bare, "--downmix", "--manifest", corpus / "dev.json")
    assert [u["reference"] for u in lowered["utterances"]] == [row["text"] for row in rows]
    assert lowered["wer"] == plain["wer"]
    of_run = measured(capsys, tmp_path / "c.json", run_dir, "--manifest", shouted, "--case", "lower")
    assert [u["reference"] for u in of_run["utterances"]] == [row["text"] for row in rows]
