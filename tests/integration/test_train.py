"""The recipe from its config to its results, and what users are told when something is wrong."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from speech_runs import QUICK, command, manifests, train

from lightning_novograd.errors import ConfigError, DataError, LightningNovoGradError

RESULTS = {
    "dev_wer",
    "test_wer",
    "dev_cer",
    "test_cer",
    "epochs",
    "optimizer_steps",
    "global_batch_size",
    "utt_per_s",
    "wall_s",
    "peak_memory_mb",
    "model_parameters",
    "optimizer",
}


def test_results(finished):
    run_dir, results = finished
    assert json.loads((run_dir / "results.json").read_text()) == results
    assert set(results) == RESULTS
    assert (results["epochs"], results["optimizer_steps"], results["global_batch_size"]) == (2, 8, 4)
    assert (results["optimizer"], results["model_parameters"]) == ("novograd", 211165)
    assert all(results[name] >= 0 for name in RESULTS - {"optimizer", "peak_memory_mb"})
    assert list(results["peak_memory_mb"]) == ["program", "data", "training"]


def test_everything_is_in_the_run_folder(finished):
    run_dir, _ = finished
    names = {p.relative_to(run_dir).as_posix() for p in run_dir.rglob("*") if p.is_file()}
    assert {"results.json", "curves.png", "layers.png", "metrics.csv", "checkpoints/last.ckpt"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert len([name for name in names if name.startswith("checkpoints/epoch0")]) == 2


def test_metrics_csv_has_the_curves(finished):
    run_dir, _ = finished
    with (run_dir / "metrics.csv").open() as file:
        columns = csv.DictReader(file).fieldnames
    assert {"train_loss", "train_wer", "dev_wer", "dev_cer", "test_wer", "utt_per_s", "lr-NovoGrad"} <= set(columns)


def test_checkpoint_loads_as_data(finished):
    run_dir, _ = finished
    checkpoint = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 8


def test_resumed_run_ends_as_the_uninterrupted_one(finished, tiny_corpus, tmp_path, recwarn):
    run_dir, results = finished
    (tmp_path / "train.log").write_text("Hydra's")
    [first_epoch] = (run_dir / "checkpoints").glob("epoch000-*.ckpt")
    resumed = train(tmp_path, [*manifests(tiny_corpus), f"resume_from='{first_epoch}'"])
    assert not [w for w in recwarn if "exists and is not empty" in str(w.message)], "Hydra's files are no earlier run's"
    assert resumed["optimizer_steps"] == results["optimizer_steps"]
    ours, theirs = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (tmp_path, run_dir)
    )
    for name, expected in theirs["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][name], expected, rtol=0, atol=0, msg=name)


@pytest.mark.slow
def test_killed_run_goes_on_inside_the_epoch(finished, tiny_corpus, tmp_path):
    run_dir, _ = finished
    killed, resumed = tmp_path / "killed", tmp_path / "resumed"
    process = subprocess.Popen(
        [
            *(sys.executable, str(ROOT / "recipes" / "asr" / "train.py"), *QUICK, *manifests(tiny_corpus)),
            *("trainer.max_epochs=1000", "optim.sched.max_steps=8", "checkpoint.every_n_steps=3"),
            f"hydra.run.dir={killed}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while not list(killed.glob("checkpoints/step*3.ckpt")) and process.poll() is None:
        pass
    process.kill()
    assert process.wait() == -9
    [newest] = killed.glob("checkpoints/step*.ckpt")
    train(resumed, [*manifests(tiny_corpus), f"resume_from='{newest}'"])
    ours, theirs = (torch.load(d / "checkpoints" / "last.ckpt", weights_only=True) for d in (resumed, run_dir))
    assert ours["global_step"] == theirs["global_step"] == 8
    for name, expected in theirs["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][name], expected, rtol=0, atol=0, msg=name)


def test_ddp_command_with_accumulation(tiny_corpus, tmp_path):
    done = command(
        *manifests(tiny_corpus),
        "trainer=ddp_cpu",
        "trainer.devices=2",
        "data.batch_size=2",
        "large_batch.global_batch_size=8",
        f"hydra.run.dir={tmp_path}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["global_batch_size"], results["optimizer_steps"]) == (8, 4)
    assert "test WER" in "".join(done.stdout.splitlines(keepends=True)[-3:])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the threads' names from /proc")
def test_no_thread_of_gloo_is_left_when_a_rank_begins_to_exit(tiny_corpus, tmp_path, monkeypatch):
    # the first module to register runs last; every process of the run imports this one before anything else
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os, pathlib\n"
        "def write():\n"
        "    names = [task.read_text().strip() for task in pathlib.Path('/proc/self/task').glob('*/comm')]\n"
        f"    pathlib.Path({str(tmp_path)!r}, f'{{os.getpid()}}.threads').write_text(' '.join(names))\n"
        "atexit.register(write)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = command(*manifests(tiny_corpus), "trainer=ddp_cpu", "trainer.max_epochs=1", f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stdout + done.stderr
    names = [path.read_text() for path in tmp_path.glob("*.threads")]
    assert len(names) == 2
    assert not any("gloo" in of_rank for of_rank in names), names


def test_a_mistake_is_one_line_on_the_command_line(tmp_path):
    done = command("+optim.momentun=0.9", f"hydra.run.dir={tmp_path}", "data.train=x", "data.dev=x")
    assert done.returncode == 1
    assert done.stderr.strip().startswith("ConfigError: optim.momentun: unknown key")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        pytest.param("sched=cosin", "sched=cosine", marks=pytest.mark.slow),
        ("optim=papr/jasper_8k", "optim=paper/jasper_8k"),
        pytest.param("trainer=ddp-cpu", "trainer=ddp_cpu", marks=pytest.mark.slow),
        pytest.param("shed=cosine", "sched", marks=pytest.mark.slow),
    ],
)
def test_a_misspelt_choice_is_refused_with_the_nearest(override, meant, tmp_path):
    done = command(override, f"hydra.run.dir={tmp_path}")
    assert done.returncode == 1
    assert done.stderr.startswith(("In 'asr': Could not find", "Could not override"))
    assert done.stderr.endswith(f"Did you mean {meant}?\n")


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["optim.name=novagrad"], ConfigError, r"^optim\.name: unknown optimizer 'novagrad'; did you mean 'NovoGrad'"),
        (["+optim.wieght_decay=1"], ConfigError, r"^optim\.wieght_decay: unknown key; did you mean 'weight_decay'"),
        (["+optim.sched.warmup_step=1"], ConfigError, r"^optim\.sched\.warmup_step: .*'warmup_steps'"),
        (
            ["optim.sched.warmup_steps=99", "optim.sched.warmup_ratio=null"],
            ConfigError,
            r"^optim\.sched\.warmup_steps: .*99.*8 optimizer steps",
        ),
        (["+trainer.max_epoch=1"], ConfigError, r"^trainer\.max_epoch: unknown key; did you mean 'max_epochs'"),
        (["+data.bach_size=1"], ConfigError, r"^data\.bach_size: unknown key; did you mean 'batch_size'"),
        (["data.name=fssd"], ConfigError, r"^data\.name: unknown corpus 'fssd'; did you mean 'fsdd'"),
        (
            ["+model.encoder.jasper.1.kernal=3"],
            ConfigError,
            r"^model\.encoder\.jasper\[1\]\.kernal: unknown key; did you mean 'kernel'",
        ),
        (["model.decoder.feat_in=100"], ConfigError, r"^model\.decoder\.feat_in: .*100.*256"),
        (
            ["+model.encoder.feat_in=80"],
            ConfigError,
            r"^model\.encoder\.feat_in: 80 .* preprocessor\.features gives 64",
        ),
        (["large_batch.global_batch_size=10"], ConfigError, r"^large_batch\.global_batch_size: .*10.*8.*12"),
        (["large_batch.global_batch_size=32"], LightningNovoGradError, r"16 utterances, fewer than one global batch"),
    ],
)
def test_bad_config(tiny_corpus, tmp_path, overrides, error, message):
    with pytest.raises(error, match=message):
        train(tmp_path, manifests(tiny_corpus) + overrides)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (None, r"train\.json.*(no such file|does not exist|not found|missing)"),
        ("{oops", r"train\.json:2: .*JSON"),
        ('{"audio_filepath": "a.flac", "duration": 1.0}', r"train\.json:2: .*text"),
        ('{"audio_filepath": "nowhere.flac", "duration": 1.0, "text": "a"}', r"train\.json:2: .*nowhere\.flac"),
        ('{"audio_filepath": "corrupt.flac", "duration": 1.0, "text": "a"}', r"train\.json:2: .*corrupt\.flac"),
        ('{"audio_filepath": "a.flac", "duration": 1.0, "text": "7 3 1"}', r"train\.json:2: .*'7'"),
        (
            '{"audio_filepath": "a.flac", "duration": 1.0, "text": "%s"}' % ("aa" * 40),
            r"train\.json:2: .* 49 output frames, but .* needs 159",
        ),
    ],
    ids=["missing manifest", "not JSON", "no text", "no audio", "corrupt audio", "alphabet", "too short for its text"],
)
def test_bad_data(tiny_corpus, tmp_path, line, message):
    manifest = tmp_path / "train.json"
    (tmp_path / "corrupt.flac").write_bytes(b"fLaC, or not")
    (tmp_path / "a.flac").symlink_to(tiny_corpus.parent / "0.flac")
    if line is not None:
        good = json.loads(tiny_corpus.read_text().splitlines()[0])
        line = line.replace('"duration": 1.0', f'"duration": {good["duration"]}')
        good["audio_filepath"] = "a.flac"
        manifest.write_text(json.dumps(good) + "\n" + line + "\n")
    with pytest.raises(DataError, match=message):
        train(tmp_path, manifests(manifest))
