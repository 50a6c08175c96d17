"""The parts of a run that a whole run hides."""

import logging
from types import SimpleNamespace

import pytest
from lightning.pytorch import callbacks as pl_callbacks
from lightning.pytorch import loggers as pl_loggers

from lightning_novograd.large_batch.plan import solve_batch_plan
from lightning_novograd.recipes.asr.training.run import (
    build_checkpoints,
    build_loggers,
    build_trainer,
    measure,
    report,
)
from lightning_novograd.recipes.asr.training.settings import RunSettings

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
    by_epoch, last = build_checkpoints(settings(checkpoint={"save_top_k": 5}), tmp_path)
    folder = str(tmp_path / "checkpoints")
    assert [kept.dirpath for kept in (by_epoch, last)] == [folder, folder]
    assert (by_epoch.monitor, by_epoch.mode, by_epoch.save_top_k) == ("dev_wer", "min", 5)
    name = by_epoch.format_checkpoint_name({"epoch": 7, "dev_wer": 0.125, "step": 9})
    assert name == f"{folder}/epoch=007-dev_wer=0.1250.ckpt"
    assert (last.filename, last.monitor, last.save_top_k, last._save_on_train_epoch_end) == ("last", None, 1, True)
    *_, by_step = three = build_checkpoints(settings(checkpoint={"every_n_steps": 4}), tmp_path)
    assert len(three) == 3
    assert (by_step.dirpath, by_step._every_n_train_steps, by_step.save_top_k) == (folder, 4, 1)
    assert by_step.format_checkpoint_name({"epoch": 7, "step": 9}) == f"{folder}/step=0000009.ckpt"


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
