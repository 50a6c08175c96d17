"""train.py --plan: what a run would be, without GPUs, corpora or files, and that the run then is just that."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import speech_files
import tiny_speech
from conftest import ROOT
from hydra import compose, initialize_config_module

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.large_batch.plan import BatchPlan
from lightning_novograd.recipes.asr.data.config import DataConfig
from lightning_novograd.recipes.asr.data.size import training_size
from lightning_novograd.recipes.asr.training.plan import describe_run
from lightning_novograd.recipes.asr.training.run import run
from lightning_novograd.recipes.common.batches.log import PlanLog
from lightning_novograd.recipes.common.batches.steps import count_steps
from lightning_novograd.recipes.common.data.steps import EpochSteps


@pytest.fixture(scope="module")
def planned():
    with initialize_config_module("lightning_novograd.conf", version_base="1.3"):
        yield lambda *overrides: describe_run(compose("asr", overrides=list(overrides))).splitlines()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """14 utterances of 0.2 to 0.6 s."""
    return speech_files.write_corpus(tmp_path_factory.mktemp("corpus"), "train", 14)


def of_manifest(path: Path) -> list[str]:
    return ["data=manifest", f"data.train={path}", f"data.dev={path}", "model=quartznet_small"]


NODES = ["trainer.devices=8", "trainer.num_nodes=4", "large_batch.global_batch_size=8192"]


def test_nodes_of_gpus_and_a_corpus_that_are_not_there(planned):
    scaling = ["large_batch.reference.global_batch_size=1152", "large_batch.lr_scaling=sqrt"]
    data = ["large_batch.max_per_device_batch_size=72", "large_batch.warmup_ratio=null"]
    assert planned("experiment=quartznet15x5_librispeech", *NODES, *scaling, *data) == [
        "global batch 8192 = 64 per device x 8 devices x 4 nodes x 4 accumulated",
        "LR 0.0266667 = 0.01 (optim.lr, tuned at a global batch of 1152) x sqrt(8192 / 1152)",
        "281241 utterances in an epoch (less those outside data.min_duration and max_duration: the corpus is not "
        "there), 2713 left out of it",
        "34 steps per epoch, 8840 in all (at most 260 epochs), 68 steps of warmup",
        "optimizer state (NovoGrad): 75.7 MB on each of 32 ranks, for 18.9 M parameters",
    ]


def test_what_cannot_be_split_is_refused_with_what_can(planned):
    with pytest.raises(ConfigError, match=r"^large_batch\.global_batch_size: 8191 .*nearest that work: 6912 and 9216"):
        planned("experiment=quartznet15x5_librispeech", *NODES[:2], "large_batch.global_batch_size=8191")
    most = "large_batch.max_per_device_batch_size=72"
    with pytest.raises(ConfigError, match=r"8191 is not a multiple of 32 .*nearest that work: 8160 and 8192"):
        planned("experiment=quartznet15x5_librispeech", *NODES[:2], "large_batch.global_batch_size=8191", most)


def test_what_is_not_known_is_said(planned):
    lines = planned("data=an4", "data.cache_dir=/nowhere", "optim=adamw", "trainer.max_epochs=3")
    assert lines[2:4] == [
        "utterances of the training set: unknown (the corpus is not there)",
        "an unknown number of steps per epoch, no known number in all (at most 3 epochs)",
    ]
    assert lines[4].startswith("optimizer state (AdamW): 1.689 MB, for")
    lines = planned("data=fsdd", "data.root=/nowhere", "data.cache_dir=/nowhere")
    assert lines[2].startswith(
        "2000 utterances in an epoch (no recordings of the Free Spoken Digit Dataset in /nowhere"
    )
    assert planned("data=an4", "data.cache_dir=/nowhere", "trainer.max_steps=50", "trainer.max_epochs=-1")[3] == (
        "an unknown number of steps per epoch, 50 in all, 5 steps of warmup"
    )


def test_the_alphabet_of_texts_that_are_not_read(planned, corpus):
    *_, state = planned(
        *of_manifest(corpus), "model.labels=auto", "data.batch_size=2", "+optim.ema=0.9", "sched=constant"
    )
    assert state.endswith("(28 labels assumed for labels: auto)")
    with pytest.raises(ConfigError, match=r"^freeze: .*nothing"):
        planned(*of_manifest(corpus), "data.batch_size=2", "freeze=['nothing_like_it']")


def test_manifests_are_counted_without_a_look_at_the_audio(tmp_path):
    rows = [{"audio_filepath": "nowhere.wav", "text": "a", "duration": d} for d in (0.5, 1, 2.5, 4)]
    path = speech_files.write_manifest(tmp_path / "train.json", rows)
    config = {"name": "manifest", "train": str(path), "dev": "dev.json"}
    assert training_size(DataConfig.from_mapping(config)) == (4, 8.0, "")
    limited = {**config, "min_duration": 0.6, "max_duration": 3}
    assert training_size(DataConfig.from_mapping(limited)) == (2, 3.5, "")
    twice = [{"manifest_filepath": str(path), "weight": 2}]
    assert training_size(DataConfig.from_mapping({**config, "train": twice})) == (8, 16.0, "")
    missing = training_size(DataConfig.from_mapping({**config, "train": "missing.json"}))
    assert (missing.utterances, missing.note) == (None, "manifest missing.json does not exist")
    path.write_text("{}\n")
    assert "cannot be read" in training_size(DataConfig.from_mapping(config)).note


@pytest.mark.parametrize(
    ("options", "steps", "size"),
    [
        (["data.batch_size=4"], 3, "14 utterances in an epoch, 2 left out of it"),
        (["data.batch_size=4", "large_batch.last=keep"], 4, "14 utterances in an epoch, its last step is shorter"),
        (["data.batch_size=7"], 2, "14 utterances in an epoch"),
        (["data.batch_seconds=2.5"], 1, "14 utterances in an epoch"),
        (["data.batch_size=1", "large_batch.global_batch_size=4", "trainer.limit_train_batches=8"], 2, None),
        (["data.batch_size=2", "+trainer.overfit_batches=3"], 3, None),
        (["data.batch_size=2", "+trainer.overfit_batches=0.5"], 3, None),
    ],
)
def test_the_steps_of_manifests_that_are_there(planned, corpus, options, steps, size):
    _, _, said, length, _ = planned(*of_manifest(corpus), *options, "trainer.max_epochs=5")
    assert length.startswith(f"{steps} steps per epoch, {5 * steps} in all (at most 5 epochs)")
    assert size is None or said == size


def test_a_run_of_a_few_batches(planned, corpus):
    *_, length, _ = planned(
        *of_manifest(corpus), "data.batch_size=2", "+trainer.fast_dev_run=2", "trainer.max_epochs=5"
    )
    assert length.startswith("2 steps per epoch, 2 in all (at most 1 epochs)")


def test_a_run_without_an_end(planned, corpus):
    """As the run does, the plan refuses a schedule that has to know the end."""
    endless = ["trainer.max_epochs=-1", "+trainer.max_time=00:01:00:00"]
    with pytest.raises(ConfigError, match=r"max_steps"):
        planned(*of_manifest(corpus), "data.batch_size=2", *endless)
    *_, length, _ = planned(*of_manifest(corpus), "data.batch_size=2", *endless, "sched=constant")
    assert length == "7 steps per epoch, no known number in all, no schedule"


def test_a_training_set_that_is_too_small(planned, corpus):
    with pytest.raises(
        DataError, match=r"14 utterances, fewer than one global batch of 32 .*; a smaller data.batch_si"
    ):
        planned(*of_manifest(corpus), "data.batch_size=32")
    fits = r"fewer than one global batch of 16 \(.* 4 x 1 .* 4\); large_batch.global_batch_size=12 fits"
    with pytest.raises(DataError, match=fits):
        planned(*of_manifest(corpus), "data.batch_size=4", "large_batch.global_batch_size=16")
    with pytest.raises(ConfigError, match=r"^trainer\.limit_train_batches: 3 takes 3 of 6 .* work: 2 and 4"):
        planned(*of_manifest(corpus), "data.batch_size=2", "trainer.accumulate_grad_batches=2",
                "trainer.limit_train_batches=3")  # fmt: skip


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({"max_epochs": 3}, (4, 12)),
        ({"max_epochs": 3, "max_steps": 7}, (4, 7)),
        ({"max_epochs": 3, "max_steps": -1}, (4, 12)),
        ({"max_epochs": -1, "max_steps": 7}, (4, 7)),
        ({"max_epochs": None, "max_steps": 7}, (4, 7)),
        ({"max_epochs": -1}, (4, None)),
        ({}, (4, 4000)),
        ({"max_epochs": 1, "limit_train_batches": 0.6}, (2, 2)),
    ],
)
def test_the_length_of_a_run_is_the_trainers(trainer, expected):
    assert count_steps(EpochSteps(4, 1), BatchPlan(8, 2, 2, 1, 2), trainer) == expected


@pytest.mark.slow
def test_the_log_of_a_run_says_what_the_plan_has_said(corpus, tmp_path, planned, caplog):
    options = [*of_manifest(corpus), "data.batch_size=2", "large_batch.global_batch_size=4", "large_batch.last=keep"]
    options += ["optim.lr=0.01", "large_batch.reference.global_batch_size=1", "large_batch.lr_scaling=sqrt"]
    options += ["large_batch.warmup_ratio=0.5", "trainer.max_epochs=2", "trainer.enable_progress_bar=false"]
    options += ["+trainer.enable_model_summary=false", "logger=none"]
    batches, lr, _, steps, state = planned(*options)
    assert (lr[:9], steps) == ("LR 0.02 =", "4 steps per epoch, 8 in all (at most 2 epochs), 4 steps of warmup")
    with caplog.at_level(logging.INFO):
        results = run(compose("asr", overrides=options), tmp_path)
    assert {batches, lr, steps, state} <= set(caplog.messages)
    assert (results["optimizer_steps"], results["global_batch_size"]) == (8, 4)


def test_the_log_of_a_training_begins_with_its_length_and_memory(caplog):
    settings = {"precision": "32-true", "strategy": "auto"}
    optim = {"sched": {"name": "CosineAnnealing", "warmup_ratio": 0.5}}
    made = tiny_speech.trainer([PlanLog(settings)], accumulate_grad_batches=2, max_epochs=4, limit_val_batches=0)
    with caplog.at_level(logging.INFO):
        made.fit(tiny_speech.module(**optim), tiny_speech.loader([tiny_speech.batch(i) for i in range(3)]))
    assert made.global_step == 8
    said = [record.getMessage() for record in caplog.records if record.name.endswith("batches.log")]
    assert said == [
        "2 steps per epoch, 8 in all (at most 4 epochs), 4 steps of warmup",
        "optimizer state (NovoGrad): 0.00506 MB, for 0.00126 M parameters",
    ]


@pytest.mark.slow
def test_the_command_prints_the_plan_and_writes_nothing(corpus, tmp_path):
    def command(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(ROOT / "recipes" / "asr" / "train.py"), *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    done = command("--plan", "experiment=quartznet15x5_b8k", "trainer.num_nodes=4", "hydra.run.dir=RUN")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "global batch 8192 = 64 per device x 8 devices x 4 nodes x 4 accumulated"
    refused = command("large_batch.global_batch_size=100", "--plan")
    assert refused.returncode == 1
    assert refused.stderr.strip().endswith("nearest that work: 96 and 112")
    sweep = command("-m", "--plan", *of_manifest(corpus), "data.batch_size=2,4")
    assert [line for line in sweep.stdout.splitlines() if line.startswith("global batch")] == [
        f"global batch {size} = {size} per device x 1 devices x 1 nodes x 1 accumulated" for size in (2, 4)
    ]
    assert not list(tmp_path.iterdir())
