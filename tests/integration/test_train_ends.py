"""How a run of the recipe ends, goes on, and fails: what is kept, and what is said."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from conftest import ROOT
from speech_runs import QUICK, command, manifests, train

from lightning_novograd.errors import ConfigError, DataError


def test_a_run_goes_on_in_its_folder_and_keeps_what_was_there(finished, tiny_corpus, tmp_path, recwarn):
    run_dir = Path(shutil.copytree(finished[0], tmp_path / "run"))
    earlier = (run_dir / "metrics.csv").read_text().splitlines()
    [first_epoch] = (run_dir / "checkpoints").glob("epoch000-*.ckpt")
    results = train(run_dir, [*manifests(tiny_corpus), f"resume_from={first_epoch}"])
    assert results["optimizer_steps"] == 8
    assert (run_dir / "metrics.csv").read_text().splitlines()[: len(earlier)] == earlier
    steps = [row["step"] for row in csv.DictReader((run_dir / "metrics.csv").open()) if row["train_loss"]]
    assert steps == [*map(str, range(8)), *map(str, range(4, 8))]
    assert json.loads((run_dir / "results_step0000008.json").read_text()) == finished[1]
    assert json.loads((run_dir / "results.json").read_text()) == results
    assert not list(run_dir.glob("checkpoints/last-*"))
    assert not (run_dir / ".lock").exists()


def test_a_second_run_in_a_folder_is_refused(finished, tiny_corpus, tmp_path):
    run_dir, results = finished
    for overrides in ([], [f"resume_from={tmp_path}/other.ckpt"]):
        with pytest.raises(
            ConfigError, match=rf"^hydra\.run\.dir: {run_dir} holds a run already \(results\.json, metrics\.csv, "
        ):
            train(run_dir, [*manifests(tiny_corpus), *overrides])
    assert json.loads((run_dir / "results.json").read_text()) == results


def test_a_run_that_has_finished_is_measured_and_said_to_have(finished, tiny_corpus, tmp_path, caplog):
    run_dir, results = finished
    with caplog.at_level("WARNING", logger="lightning_novograd"):
        again = train(tmp_path, [*manifests(tiny_corpus), f"resume_from={run_dir}/checkpoints/last.ckpt"])
    assert [r.getMessage().partition(" has ")[2] for r in caplog.records if r.name.endswith("restart.start")] == [
        "finished its 2 epochs (trainer.max_epochs=2): it is only measured; raise that number to go on"
    ]
    assert {name: again[name] for name in ("dev_wer", "test_cer", "epochs", "optimizer_steps")} == {
        name: results[name] for name in ("dev_wer", "test_cer", "epochs", "optimizer_steps")
    }


def test_without_validation_the_test_set_is_measured(tiny_corpus, tmp_path):
    overrides = ["trainer.limit_val_batches=0", "trainer.max_epochs=1", "trainer.limit_train_batches=2"]
    results = train(tmp_path, [*manifests(tiny_corpus), *overrides])
    assert (results["dev_wer"], results["dev_cer"]) == (None, None)
    assert results["test_wer"] >= 0
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


@pytest.mark.slow
def test_a_recording_with_nan_is_named_and_no_results_are_written(tiny_corpus, tmp_path):
    lines = [json.loads(line) for line in tiny_corpus.read_text().splitlines()]
    for line in lines:
        line["audio_filepath"] = str(tiny_corpus.parent / line["audio_filepath"])
    wave, rate = soundfile.read(lines[4]["audio_filepath"])
    wave[99] = float("nan")
    soundfile.write(tmp_path / "nan.wav", wave, rate, subtype="FLOAT")
    lines[4]["audio_filepath"] = str(tmp_path / "nan.wav")
    manifest = tmp_path / "nan.json"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    good = manifests(tiny_corpus)[1:]
    with pytest.raises(DataError, match=r"^optimizer step \d \(epoch 1\): samples .* in .*/nan\.json:5$"):
        train(tmp_path / "a", [f"data.train={manifest}", *good])
    assert not (tmp_path / "a" / "results.json").exists()
    results = train(tmp_path / "b", [f"data.train={manifest}", *good, "nonfinite.action=skip"])
    assert (results["skipped_steps"], results["optimizer_steps"]) == (2, 8)
    with pytest.raises(DataError, match=r"/nan\.json:5: audio file .*nan\.wav has 1 samples that are not finite"):
        train(tmp_path / "c", [manifests(tiny_corpus)[0], f"data.dev={manifest}", "trainer.max_epochs=1"])


@pytest.fixture
def corrupt(tiny_corpus, tmp_path) -> Path:
    """A manifest with a recording whose end is missing, which its header does not say."""
    folder = Path(shutil.copytree(tiny_corpus.parent, tmp_path / "corrupt"))
    whole = (folder / "3.flac").read_bytes()
    (folder / "3.flac").write_bytes(whole[: len(whole) // 2])
    return folder / "train.json"


@pytest.mark.slow
@pytest.mark.parametrize("launch", [["data.num_workers=1"], ["trainer=ddp_cpu", "data.num_workers=1"]])
def test_what_one_worker_of_one_rank_runs_into_is_one_line(corrupt, tiny_corpus, tmp_path, launch):
    run_dir = tmp_path / "run"
    overrides = [f"data.train={corrupt}", *manifests(tiny_corpus)[1:], "data.batch_size=1", *launch]
    done = command(*overrides, f"hydra.run.dir={run_dir}")
    assert done.returncode == 1
    line = f"DataError: {corrupt}:4: audio file {corrupt.parent}/3.flac is corrupt: "
    assert [text for text in done.stderr.splitlines() if "Error" in text] == [done.stderr.splitlines()[-1]]
    assert done.stderr.splitlines()[-1].startswith(line)
    assert "Traceback" not in done.stdout + done.stderr
    assert line in (run_dir / "train.log").read_text()
    assert not (run_dir / "results.json").exists()


@pytest.mark.slow
def test_other_ranks_are_quiet_and_there_are_no_warnings_of_others(tiny_corpus, tmp_path):
    overrides = [*manifests(tiny_corpus), "trainer=ddp_cpu", "data.batch_size=2", "data.num_workers=0"]
    done = command(*overrides, f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0
    said = [line for line in done.stdout.splitlines() if "train set: 16 utterances" in line]
    assert len(said) == 1
    for noise in ("Warning", "Tip:", "GLOBAL_RANK: 1", "deprecated", "not empty", "site-packages"):
        assert noise not in done.stdout + done.stderr
    assert "\r" not in done.stdout  # no bar
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert len([line for line in lines if " utterances/s, " in line and "dev: loss" in line]) == 2


@pytest.mark.slow
def test_a_reader_that_goes_away_does_not_end_the_run(tiny_corpus, tmp_path):
    program = [sys.executable, str(ROOT / "recipes" / "asr" / "train.py"), *QUICK, *manifests(tiny_corpus)]
    process = subprocess.Popen(
        [*program, f"hydra.run.dir={tmp_path}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert "global batch" in process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate()
    assert process.returncode == 0
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors
    assert "test WER" in (tmp_path / "train.log").read_text()


@pytest.mark.slow
def test_jobs_of_a_sweep_fail_alone(tiny_corpus, tmp_path):
    overrides = [*manifests(tiny_corpus), "trainer.max_epochs=1", "optim.lr=-1,0.01"]
    done = command("hydra.mode=MULTIRUN", *overrides, f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "ConfigError: optim.lr: " in done.stderr
    assert [path.parent.name for path in tmp_path.glob("*/results.json")] == ["1"]
    assert "ConfigError: optim.lr: " in (tmp_path / "0" / "train.log").read_text()


@pytest.mark.slow
def test_a_second_command_leaves_the_first_ones_config(finished, tiny_corpus, tmp_path):
    run_dir = Path(shutil.copytree(finished[0], tmp_path / "run"))
    (run_dir / ".hydra").mkdir(exist_ok=True)
    for name in (".hydra/config.yaml", "train.log"):
        (run_dir / name).write_text("first")
    done = command(*manifests(tiny_corpus), f"hydra.run.dir={run_dir}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"ConfigError: hydra.run.dir: {run_dir} holds a run already")
    assert done.stderr.count("\n") == 1
    assert (run_dir / ".hydra" / "config.yaml").read_text() == "first"
    assert (run_dir / "train.log").read_text() == "first"
