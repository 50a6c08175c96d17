"""The parts of a run that a whole run hides."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import callbacks as pl_callbacks
from lightning.pytorch import loggers as pl_loggers
from lightning.pytorch.plugins.environments import LightningEnvironment
from tiny_speech import MODEL

from lightning_novograd.errors import DataError
from lightning_novograd.large_batch.plan import BatchPlan, solve_batch_plan
from lightning_novograd.recipes.asr.training import run as run_file
from lightning_novograd.recipes.asr.training.results import batch_of_step, describe_plan, measure, report
from lightning_novograd.recipes.asr.training.settings import RunSettings
from lightning_novograd.recipes.common import trainer as trainer_file
from lightning_novograd.recipes.common.checkpoints.kept import WholeCheckpoints, build_checkpoints
from lightning_novograd.recipes.common.faults import watchdog
from lightning_novograd.recipes.common.loggers import build_loggers
from lightning_novograd.recipes.common.restart import newest
from lightning_novograd.recipes.common.results import best_checkpoint, results_of_training, set_results_aside
from lightning_novograd.recipes.common.trainer import build_trainer
from lightning_novograd.training.callbacks import LayerMonitor

DEV = {"dev_wer": 0.5, "dev_cer": 0.25, "dev_loss": 3.0}
TEST = {"test_wer": 0.75, "test_cer": 0.125}


@pytest.mark.parametrize("checkpoint", [None, "best.ckpt"])
@pytest.mark.parametrize("has_test_set", [True, False])
def test_what_is_measured_is_read_as_data_and_only_where_there_is_a_set(checkpoint, has_test_set):
    asked = []

    def evaluate(name, measured):
        return lambda *args, **options: asked.append((name, args, options)) or [measured]

    trainer = SimpleNamespace(validate=evaluate("dev", DEV), test=evaluate("test", TEST))
    module, data = object(), SimpleNamespace(has_test_set=has_test_set)
    found = measure(trainer, module, data, checkpoint)
    rates = {**DEV, **(TEST if has_test_set else dict.fromkeys(TEST))}
    assert found == {name: rates[name] for name in ("dev_wer", "test_wer", "dev_cer", "test_cer")}
    assert [name for name, _, _ in asked] == ["dev", "test"][: 1 + has_test_set]
    for _, args, options in asked:
        assert args == (module,)
        assert options == {"datamodule": data, "ckpt_path": checkpoint, "verbose": False, "weights_only": True}


def settings(**changes) -> RunSettings:
    blocks = {name: {} for name in ("model", "data", "optim", "trainer", "logger", "checkpoint", "large_batch")}
    return RunSettings.read({**blocks, **changes}, "")


def test_the_checkpoints_that_are_kept(tmp_path):
    by_epoch, last = build_checkpoints(settings(checkpoint={"save_top_k": 5}), tmp_path, "dev_wer")
    folder = str(tmp_path / "checkpoints")
    assert [kept.dirpath for kept in (by_epoch, last)] == [folder, folder]
    assert (by_epoch.monitor, by_epoch.mode, by_epoch.save_top_k) == ("dev_wer", "min", 5)
    name = by_epoch.format_checkpoint_name({"epoch": 7, "dev_wer": 0.125, "step": 9})
    assert name == f"{folder}/epoch007-dev_wer0.1250.ckpt"
    assert (last.filename, last.monitor, last.save_top_k, last._save_on_train_epoch_end) == ("last", None, 1, True)
    *_, by_step = three = build_checkpoints(settings(checkpoint={"every_n_steps": 4}), tmp_path, "dev_wer")
    assert len(three) == 3
    assert (by_step.dirpath, by_step._every_n_train_steps, by_step.save_top_k) == (folder, 4, 1)
    assert by_step.format_checkpoint_name({"epoch": 7, "step": 9}) == f"{folder}/step0000009.ckpt"


def test_the_loggers_write_into_the_run_folder(tmp_path):
    chosen = settings(logger={"csv": {"flush_logs_every_n_steps": 7}, "tensorboard": None})
    csv, board = build_loggers(chosen, tmp_path)
    assert (type(csv), type(board)) == (pl_loggers.CSVLogger, pl_loggers.TensorBoardLogger)
    assert {str(logger.log_dir).rstrip("/") for logger in (csv, board)} == {str(tmp_path)}
    assert csv._flush_logs_every_n_steps == 7
    [moved] = build_loggers(settings(logger={"csv": {"name": "sub", "version": "1"}}), tmp_path)
    assert moved.log_dir == str(tmp_path / "sub" / "1")


@pytest.mark.parametrize("logger", [{}, {"csv": None}])
def test_the_trainer(tmp_path, logger):
    chosen = settings(logger=logger, trainer={"accelerator": "cpu", "devices": 1, "max_epochs": 3})
    plan = solve_batch_plan(32, devices=1, per_device_batch_size=8)
    mine = pl_callbacks.LambdaCallback()
    trainer = build_trainer(chosen, plan, tmp_path, [mine])
    assert (trainer.accumulate_grad_batches, trainer.max_epochs) == (4, 3)
    assert trainer.default_root_dir == str(tmp_path)
    assert not trainer._accelerator_connector.use_distributed_sampler
    assert mine in trainer.callbacks
    assert [type(own) for own in trainer.loggers] == [pl_loggers.CSVLogger] * len(logger)
    monitors = [c for c in trainer.callbacks if isinstance(c, pl_callbacks.LearningRateMonitor)]
    assert [monitor.logging_interval for monitor in monitors] == ["step"] * len(logger)


def test_the_last_lines_of_the_log(tmp_path, caplog):
    counts = {"epochs": 2, "optimizer_steps": 8, "global_batch_size": 4, "utt_per_s": 3.14, "wall_s": 9.9}
    rates = {"dev_wer": 0.5, "dev_cer": 0.25, "test_wer": 0.125, "test_cer": 0.0625}
    first = f"2 epochs, 8 optimizer steps of 4 utterances, 3.1 utterances/s, 10 s in all; see {tmp_path}"
    dev, test = "dev  WER  50.00 %   CER  25.00 %", "test WER  12.50 %   CER   6.25 %"
    for changes, lines in (({}, [first, dev, test]), ({"test_wer": None, "test_cer": None}, [first, dev])):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="lightning_novograd"):
            report({**counts, **rates, **changes}, tmp_path)
        assert [record.getMessage() for record in caplog.records] == lines


def test_batches_by_seconds_have_no_number_of_utterances(tmp_path, caplog):
    plan = BatchPlan(64, 32, 2, 1, 1)
    assert batch_of_step(plan, None) == {"global_batch_size": 64}
    counted = batch_of_step(plan, 62.5)
    assert counted == {"global_batch_size": None, "global_batch_seconds": 125.0}
    assert describe_plan(plan, None) == str(plan)
    assert "global batch 125 s of audio = 62.5 s per device x 2 devices" in describe_plan(plan, 62.5)
    counts = {"epochs": 2, "optimizer_steps": 8, "utt_per_s": 3.14, "wall_s": 9.9, "dev_wer": None, "dev_cer": None}
    with caplog.at_level(logging.INFO, logger="lightning_novograd"):
        report({**counts, **counted, "test_wer": None, "test_cer": None}, tmp_path)
    first = f"2 epochs, 8 optimizer steps of 125 s of audio, 3.1 utterances/s, 10 s in all; see {tmp_path}"
    assert caplog.messages == [first]


@pytest.mark.parametrize("test", ["last", "best"])
@pytest.mark.parametrize("resume", [None, "there.ckpt"])
def test_a_run_gives_each_part_its_settings(tmp_path, monkeypatch, test, resume):
    asked = {}

    def stands_for(name, result):
        return lambda *args, **options: asked.setdefault(name, (args, options)) and result

    model = SimpleNamespace(
        output_lengths=len,
        config=SimpleNamespace(preprocessor=SimpleNamespace(sample_rate=8000)),
        parameters=lambda: [],
    )
    module, data = SimpleNamespace(alphabet="ab", model=model, reduction="sum"), object()
    trainer = SimpleNamespace(fit=stands_for("fit", None), current_epoch=2, global_step=8, is_global_zero=True)
    trainer.world_size = 1
    checkpoints = [SimpleNamespace(best_model_path="best.ckpt"), SimpleNamespace()]
    for name, result in {
        "CTCModule": module,
        "SpeechDataModule": data,
        "build_checkpoints": checkpoints,
        "build_trainer": trainer,
        "measure": {"dev_wer": 0.5, "test_wer": None, "dev_cer": 0.25, "test_cer": None},
        "read_resumed": {"global_step": 8, "loops": {}},
        "check_resumed": None,
    }.items():
        monkeypatch.setattr(newest if name == "read_resumed" else run_file, name, stands_for(name, result))
    monkeypatch.setattr(run_file.DataConfig, "check_given", lambda self: None)
    monkeypatch.setattr(run_file.pl, "seed_everything", stands_for("seed", 0))
    monkeypatch.setattr(run_file.UtteranceRate, "mean", 3.14159)
    if resume is not None:
        resume = str(tmp_path / resume)
        (tmp_path / "there.ckpt").write_bytes(b"")
    cfg = {
        "model": {"a": 1},
        "data": {"name": "manifest", "train": "a", "dev": "b", "batch_size": 4},
        "optim": {"name": "novograd"},
        "trainer": {"accelerator": "cpu", "devices": 1},
        "logger": {},
        "checkpoint": {"test": test},
        "large_batch": {"global_batch_size": 12, "last": "keep"},
        "seed": 7,
        "num_samples": 5,
        "layer_monitor": 9,
        "resume_from": resume,
    }
    results = run_file.run(cfg, tmp_path)

    assert asked["seed"] == ((7,), {"workers": True, "verbose": False})
    assert asked["CTCModule"] == (({"a": 1}, {"name": "novograd"}), {"num_samples": 5})
    (config, alphabet), options = asked["SpeechDataModule"]
    assert (config.loading.batch_size, alphabet) == (4, "ab")
    batches = {"batch_size": 4, "last": "keep", "reduction": "sum"}
    assert options == {"samples_to_frames": len, "sample_rate": 8000, "seed": 7, **batches}
    (settings_, plan, folder, callbacks), _ = asked["build_trainer"]
    assert (settings_.seed, plan.accumulate_grad_batches, folder) == (7, 3, tmp_path)
    heartbeat, origin, *callbacks = callbacks
    assert type(heartbeat).__name__ == "Heartbeat"
    assert (origin.path, origin.step) == (resume and Path(resume), 8 if resume else 0)
    seed, rate, curves, guard, progress, memory, *kept, monitor = callbacks
    assert (progress.rate, progress.interval, progress.extra) == (rate, 30.0, {"file_only": False})
    assert [type(callback).__name__ for callback in callbacks[:3]] == ["BatchSeed", "UtteranceRate", "CurveRecorder"]
    assert (guard.action, guard.max_consecutive) == ("raise", 10)
    assert module.guard is guard
    assert (seed.seed, curves.path, kept) == (7, tmp_path / "curves.png", checkpoints)
    assert (type(monitor), monitor.every_n_steps) == (LayerMonitor, 9)
    assert asked["fit"] == ((module, data), {"ckpt_path": resume, "weights_only": True})
    assert asked["measure"][0] == (trainer, module, data, "best.ckpt" if test == "best" else None)
    # what Lightning would only say in a stack trace
    assert asked.get("read_resumed") == (resume and ((Path(resume),), {}))
    assert asked.get("check_resumed") == (resume and ((Path(resume), {"global_step": 8, "loops": {}}, module), {}))
    assert results == json.loads((tmp_path / "results.json").read_text())
    assert (tmp_path / "results.json").read_text().startswith('{\n  "dev_wer": 0.5,\n')
    wall = results.pop("wall_s")
    assert wall == round(wall, 2) < 100
    assert results == {
        **{"dev_wer": 0.5, "test_wer": None, "dev_cer": 0.25, "test_cer": None},
        **{"epochs": 2, "optimizer_steps": 8, "global_batch_size": 12, "utt_per_s": 3.14},
        **{"peak_memory_mb": memory.stages, "model_parameters": 0, "optimizer": "novograd"},
    }


def test_only_the_first_rank_writes_results_and_layers_are_watched_when_said(tmp_path, monkeypatch):
    seen = []
    trainer = SimpleNamespace(fit=lambda *a, **k: None, current_epoch=0, global_step=0, is_global_zero=False)
    trainer.world_size = 1
    monkeypatch.setattr(run_file, "build_trainer", lambda *args: seen.extend(args[3]) or trainer)
    monkeypatch.setattr(run_file, "measure", lambda *args: {})
    monkeypatch.setattr(run_file, "SpeechDataModule", lambda *args, **options: None)
    monkeypatch.setattr(run_file.DataConfig, "check_given", lambda self: None)
    block = {"filters": 8, "kernel": 11, "stride": 2, "residual": False}
    cfg = {name: {} for name in ("logger", "checkpoint", "large_batch")}
    cfg |= {"trainer": {"accelerator": "cpu", "devices": 1}, "optim": {"name": "novograd", "lr": 0.1}}
    cfg |= {"model": {"labels": ["a"], "encoder": {"jasper": [block]}}}
    cfg |= {"data": {"name": "manifest", "train": "a", "dev": "b"}}
    results = run_file.run(cfg, tmp_path)
    assert not list(tmp_path.iterdir())
    assert not any(isinstance(callback, LayerMonitor) for callback in seen)
    assert results["model_parameters"] == 64 * 8 * 11 + 2 * 8 + 8 * 2 + 2
    by_seconds = run_file.run({**cfg, "data": {**cfg["data"], "batch_seconds": 60.0}}, tmp_path)
    assert (by_seconds["global_batch_size"], by_seconds["global_batch_seconds"]) == (None, 60.0)


@pytest.mark.parametrize("said", [True, False, None])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_progress_bar_is_for_terminals(tmp_path, monkeypatch, said, terminal):
    monkeypatch.setattr(trainer_file, "shows_bar", lambda wanted: wanted and terminal)
    block = {"accelerator": "cpu", "devices": 1} | ({} if said is None else {"enable_progress_bar": said})
    trainer = build_trainer(
        settings(trainer=block), solve_batch_plan(8, devices=1, per_device_batch_size=8), tmp_path, []
    )
    assert (trainer.progress_bar_callback is not None) == (said is not False and terminal)


def test_checkpoints_are_written_whole_beside_other_plugins(tmp_path):
    block = {"accelerator": "cpu", "devices": 1}
    plan = solve_batch_plan(8, devices=1, per_device_batch_size=8)
    for plugins in (None, [], LightningEnvironment(), [LightningEnvironment()]):
        trainer = build_trainer(settings(trainer={**block, "plugins": plugins}), plan, tmp_path, [])
        assert type(trainer.strategy.checkpoint_io) is WholeCheckpoints


@pytest.mark.parametrize("content", ['{"optimizer_steps": 12}', "{}", "["])
def test_results_of_what_is_continued_are_set_aside(tmp_path, content, monkeypatch):
    (tmp_path / "results.json").write_text(content)
    with monkeypatch.context() as other_rank:
        other_rank.setenv("LOCAL_RANK", "1")
        set_results_aside(tmp_path)
        assert (tmp_path / "results.json").exists()
    set_results_aside(tmp_path)
    set_results_aside(tmp_path)  # there are none
    [kept] = tmp_path.iterdir()
    assert kept.name == ("results_step0000012.json" if "12" in content else "results_step0000000.json")


def test_what_came_of_a_training_stays_when_it_is_measured_again(tmp_path, caplog):
    """Not the zero utterances/s and the few seconds of the measurement."""
    of_training = {"epochs": 2, "utt_per_s": 3.1, "wall_s": 99.0, "peak_memory_mb": {"training": 7}, "skipped_steps": 1}
    of_training |= {"global_batch_size": 64, "stopped_early": "dev_wer"}
    found = {**of_training, "optimizer_steps": 12, "dev_wer": 0.5, "optimizer": "sgd"}
    (tmp_path / "results.json").write_text(json.dumps(found))
    assert results_of_training(tmp_path, 12, "utt_per_s") == of_training
    assert results_of_training(tmp_path, 13, "utt_per_s") == {"utt_per_s": None}, "of another training"
    for content in ("[", "[1]", "{}"):
        (tmp_path / "results.json").write_text(content)
        assert results_of_training(tmp_path, 12, "utt_per_s") == {"utt_per_s": None}
    for rate, said in (
        (3.1, "the training was 2 epochs, 12 optimizer steps of 64 utterances, 3.1 utterances/s, 99 s"),
        (None, "2 epochs, 12 optimizer steps of 64 utterances, 99 s"),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="lightning_novograd"):
            shown = {
                **found,
                "dev_cer": 1.0,
                "test_wer": None,
                "test_cer": None,
                "peak_memory_mb": {},
                "utt_per_s": rate,
            }
            report(shown, tmp_path, trained=False)
        assert caplog.messages[0] == f"only measured; {said} in all; see {tmp_path}"


@pytest.mark.parametrize(
    ("content", "name"), [({"global_step": 24}, "average_step0000024.ckpt"), ([1], "average_step0000000.ckpt")]
)
def test_the_average_of_what_is_continued_is_set_aside(tmp_path, content, name):
    (tmp_path / "checkpoints").mkdir()
    torch.save(content, tmp_path / "checkpoints" / "average.ckpt")
    set_results_aside(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [name]


def test_the_best_checkpoint_is_one_that_was_kept():
    assert best_checkpoint([SimpleNamespace(best_model_path="a.ckpt"), None]) == "a.ckpt"
    with pytest.raises(DataError, match=r"^checkpoint\.test is 'best', but the training has ended before its first"):
        best_checkpoint([SimpleNamespace(best_model_path="")])


def test_a_set_that_a_limit_leaves_out_has_no_numbers():
    nothing = SimpleNamespace(validate=lambda *a, **k: [], test=lambda *a, **k: [TEST])
    found = measure(nothing, None, SimpleNamespace(has_test_set=True), None)
    assert found == {"dev_wer": None, "test_wer": 0.75, "dev_cer": None, "test_cer": 0.125}


def test_steps_that_were_left_out_are_in_the_results(tmp_path, monkeypatch):
    """And an error of one of several ranks ends them all."""
    results = run_with(tmp_path, monkeypatch, lambda module: setattr(module.guard, "skipped", 3))
    assert results["skipped_steps"] == 3
    ended = []

    def fail(error, folder, many, peers, culprit):
        ended.append((error, folder, many, peers, culprit))
        raise error

    monkeypatch.setattr(watchdog, "fail", fail)

    def raises(module):
        raise error

    error = DataError("is bad")
    peer = SimpleNamespace(poll=lambda: None)
    for world_size, procs in ((2, [peer]), (1, [])):
        with pytest.raises(DataError, match=r"^is bad(\n\(rank 0, process \d+ on .*\))?$"):
            run_with(tmp_path, monkeypatch, raises, world_size=world_size, procs=procs)
    assert ended == [(error, tmp_path, True, [peer], None)]


def run_with(tmp_path, monkeypatch, fit, world_size=1, procs=()):
    """Run with a module of one layer; `fit(module)` in the place of the training."""
    strategy = SimpleNamespace(launcher=SimpleNamespace(procs=list(procs)), setup_environment=lambda: None)
    trainer = SimpleNamespace(
        **{"fit": lambda module, *a, **k: fit(module), "strategy": strategy, "world_size": world_size},
        **{"current_epoch": 0, "global_step": 0, "is_global_zero": False, "num_devices": 1, "global_rank": 0},
    )
    monkeypatch.setattr(run_file, "build_trainer", lambda *args: trainer)
    monkeypatch.setattr(run_file, "measure", lambda *args: {})
    monkeypatch.setattr(run_file, "SpeechDataModule", lambda *args, **options: None)
    monkeypatch.setattr(run_file.DataConfig, "check_given", lambda self: None)
    cfg = {name: {} for name in ("logger", "checkpoint", "large_batch")}
    cfg |= {"trainer": {"accelerator": "cpu", "devices": 1}, "optim": {"name": "novograd", "lr": 0.1}}
    cfg |= {"model": MODEL, "data": {"name": "manifest", "train": "a", "dev": "b"}}
    return run_file.run(cfg, tmp_path)


@pytest.mark.parametrize("lost", ["train", "dev", "test", "noise"])
def test_a_manifest_that_is_missing_is_found_before_the_folder_changes(tmp_path, monkeypatch, lost):
    paths = {name: tmp_path / f"{name}.json" for name in ("train", "more", "dev", "test", "noise")}
    for name, path in paths.items():
        if name != lost:
            path.touch()
    data = {
        "name": "manifest",
        "train": [str(paths["more"]), {"manifest_filepath": str(paths["train"]), "weight": 0.5}],
        "augment": {"noise": {"manifest": str(paths["noise"])}},
        **{split: str(paths[split]) for split in ("dev", "test")},
    }
    monkeypatch.setattr(run_file, "save_config", lambda *args: pytest.fail("written"))
    with pytest.raises(DataError, match=rf"^manifest .*/{lost}\.json does not exist$"):
        run_file.run(
            {
                **{"model": MODEL, "data": data, "optim": {"name": "novograd", "lr": 0.01}},
                **{
                    "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 1},
                    "logger": {},
                    "checkpoint": {},
                    "large_batch": {},
                },
            },
            tmp_path / "run",
        )
    assert not list((tmp_path / "run").iterdir())
