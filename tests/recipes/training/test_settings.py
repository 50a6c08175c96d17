"""The run's own part of the config: what is refused, and how a global batch is split."""

import pytest
import torch
from lightning.pytorch import loggers as pl_loggers
from lightning.pytorch.accelerators import CUDAAccelerator

from lightning_novograd import ConfigError
from lightning_novograd.recipes.asr.training.settings import RunSettings, plan_batches
from lightning_novograd.recipes.common.engines.devices import count_devices
from lightning_novograd.recipes.common.settings.run import LOGGERS

BLOCKS = {
    "model": {},
    "data": {},
    "optim": {},
    "trainer": {"accelerator": "cpu", "devices": 2, "num_nodes": 1, "accumulate_grad_batches": 1},
    "logger": {"csv": {}},
    "checkpoint": {},
    "large_batch": {},
}


def settings(**changes) -> RunSettings:
    return RunSettings.read({**BLOCKS, **changes}, "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optmi": {}}, r"^optmi: unknown key; did you mean 'optim'\?"),
        ({"trainer": {"max_epoch": 3}}, r"^trainer\.max_epoch: unknown key; did you mean 'max_epochs'\?"),
        ({"trainer": {"callbacks": []}}, r"^trainer\.callbacks: is set by the recipe; use the checkpoint block"),
        ({"trainer": {"gradient_clip_val": 1.0}}, r"^trainer\.gradient_clip_val: .* use optim\.grad_clip_norm"),
        ({"logger": {"tensorbord": {}}}, r"^logger\.tensorbord: unknown key; did you mean 'tensorboard'\?"),
        ({"checkpoint": {"save_topk": 1}}, r"^checkpoint\.save_topk: unknown key; did you mean 'save_top_k'\?"),
        ({"checkpoint": {"test": "bset"}}, r"^checkpoint\.test: 'bset' is unknown; did you mean 'best'\?"),
        ({"checkpoint": {"test": "best", "save_top_k": 0}}, r"^checkpoint\.save_top_k: must not be 0"),
        (
            {"checkpoint": {"test": "best"}, "trainer": {"limit_val_batches": 0}},
            r"^checkpoint\.test: is 'best', but with trainer\.limit_val_batches=0 there is no dev WER .*; take 'last'$",
        ),
        (
            {"checkpoint": {"test": "best"}, "trainer": {"check_val_every_n_epoch": 3, "max_epochs": 2}},
            r"^checkpoint\.test: is 'best', but with trainer\.check_val_every_n_epoch=3 the 2 epochs end without",
        ),
        (
            {"checkpoint": {"test": "best"}, "trainer": {"fast_dev_run": True}},
            r"^checkpoint\.test: is 'best', but trainer\.fast_dev_run keeps no checkpoints",
        ),
        ({"nonfinite": {"action": "ignore"}}, r"^nonfinite\.action: 'ignore' is unknown\. Allowed: raise, skip"),
        ({"nonfinite": {"max": 3}}, r"^nonfinite\.max: unknown key"),
        ({"console": {"interval": 0}}, r"^console\.interval: must be more than 0"),
        ({"large_batch": {"global_batch": 8}}, r"^large_batch\.global_batch: unknown key; did you mean"),
        ({"large_batch": {"global_batch_size": 0}}, r"^large_batch\.global_batch_size: must be at least 1, not 0"),
        ({"large_batch": {"global_batch_size": "8k"}}, r"^large_batch\.global_batch_size: must be a whole number"),
        ({"seed": -1}, r"^seed: must be at least 0, not -1"),
        ({"trainer": None}, r"^trainer: must be"),
        ({"init_from": "a", "resume_from": "b"}, r"^init_from: and resume_from exclude each other"),
        ({"freeze": ["a", 1]}, r"^freeze: must be a list of globs over parameter names, not \['a', 1\]"),
        ({"freeze": "encoder.*"}, r"^freeze: must be "),
        ({"early_stopping": {"patient": 1}}, r"^early_stopping\.patient: unknown key; did you mean 'patience'\?"),
        (
            {"early_stopping": {"patience": 1}, "trainer": {"limit_val_batches": 0}},
            r"^early_stopping\.patience: has nothing to watch with trainer\.limit_val_batches=0",
        ),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        settings(**changes)


@pytest.mark.parametrize(
    ("trainer", "large_batch", "batch_size", "expected"),
    [
        # (global, per device, devices, nodes, accumulation)
        ({"devices": 1}, {}, 32, (32, 32, 1, 1, 1)),
        ({"devices": 2, "num_nodes": 3, "accumulate_grad_batches": 5}, {}, 4, (120, 4, 2, 3, 5)),
        ({"devices": 1, "accumulate_grad_batches": 4}, {}, 8, (32, 8, 1, 1, 4)),
        ({"devices": 2}, {"global_batch_size": 64}, 16, (64, 16, 2, 1, 2)),
        ({"devices": [0, 3], "num_nodes": 4}, {"global_batch_size": 1024}, 16, (1024, 16, 2, 4, 8)),
    ],
)
def test_plan(trainer, large_batch, batch_size, expected):
    chosen = settings(trainer={**BLOCKS["trainer"], **trainer}, large_batch=large_batch)
    plan = plan_batches(chosen, batch_size)
    assert (
        plan.global_batch_size,
        plan.per_device_batch_size,
        plan.devices,
        plan.num_nodes,
        plan.accumulate_grad_batches,
    ) == expected


def test_a_trainer_block_that_says_nothing_is_one_node_without_accumulation():
    plan = plan_batches(settings(trainer={"accelerator": "cpu", "devices": 2}), 8)
    assert (plan.global_batch_size, plan.num_nodes, plan.accumulate_grad_batches) == (16, 1, 1)


RESERVED = {
    "logger": "use the logger group",
    "callbacks": "use the checkpoint block",
    "default_root_dir": "use hydra.run.dir",
    "use_distributed_sampler": "the data module's sampler knows its rank",
    "gradient_clip_val": "use optim.grad_clip_norm or optim.grad_clip_value",
    "gradient_clip_algorithm": "use optim.grad_clip_norm or optim.grad_clip_value",
}


@pytest.mark.parametrize(("name", "instead"), RESERVED.items())
def test_what_the_recipe_sets_itself_is_said_with_what_to_use_instead(name, instead):
    with pytest.raises(ConfigError) as error:
        settings(trainer={name: None})
    assert (error.value.path, error.value.problem) == (f"trainer.{name}", f"is set by the recipe; {instead}")


def test_every_logger_is_one_of_lightnings():
    assert LOGGERS.keys() == {"csv", "tensorboard", "wandb"}
    assert all(getattr(pl_loggers, name).__name__ == name for name in LOGGERS.values())
    assert settings(logger=dict.fromkeys(LOGGERS)).logger == dict.fromkeys(LOGGERS)


def test_plan_that_does_not_divide_names_sizes_that_work():
    with pytest.raises(ConfigError, match=r"^large_batch\.global_batch_size: .*100.*(96|128)"):
        plan_batches(settings(large_batch={"global_batch_size": 100}), 16)


def test_a_batch_is_so_many_utterances_or_so_many_seconds():
    by_seconds = {"data": {"batch_seconds": 60.0}}
    with pytest.raises(ConfigError, match=r"^large_batch\.global_batch_size: is 64 utterances, but data\."):
        plan_batches(settings(**by_seconds, large_batch={"global_batch_size": 64}), 16)
    trainer = {**BLOCKS["trainer"], "accumulate_grad_batches": 3}
    assert plan_batches(settings(**by_seconds, trainer=trainer), 16).accumulate_grad_batches == 3


def test_a_batch_that_grows_is_refused():
    chosen = settings(large_batch={"global_batch_size": [[0, 64], [100, 128]]})
    with pytest.raises(ConfigError, match=r"^large_batch\.global_batch_size: .*cannot grow; .*BatchRampScheduler"):
        plan_batches(chosen, 16)


def test_accumulation_is_decided_once():
    chosen = settings(trainer={"devices": 1, "accumulate_grad_batches": 2}, large_batch={"global_batch_size": 64})
    with pytest.raises(ConfigError, match=r"^trainer\.accumulate_grad_batches: is 2, but .*global_batch_size=64"):
        plan_batches(chosen, 16)


@pytest.mark.parametrize(
    ("trainer", "count"),
    [
        ({"accelerator": "cpu", "devices": 3}, 3),
        ({"accelerator": "cpu", "devices": "auto"}, 1),
        ({"accelerator": "cpu"}, 1),
        ({"accelerator": "auto"}, torch.cuda.device_count() or 1),
        ({}, torch.cuda.device_count() or 1),
        ({"accelerator": "gpu", "devices": [0, 1]}, 2),
        ({"accelerator": "gpu", "devices": 1}, 1),
        ({"accelerator": "cpu", "devices": -1}, 1),
        ({"accelerator": "cpu", "devices": "-1"}, 1),
    ],
)
def test_count_devices(trainer, count):
    assert count_devices(trainer) == count


@pytest.mark.parametrize("devices", [0, "two", 1.5])
def test_devices_that_are_no_number(devices):
    with pytest.raises(ConfigError, match=r"^trainer\.devices: must be a number of devices"):
        count_devices({"accelerator": "cpu", "devices": devices})


@pytest.mark.parametrize(("available", "name", "count"), [(True, "cuda", 4), (False, "cpu", 1)])
def test_devices_are_counted_on_the_accelerator_that_the_trainer_takes(available, name, count, monkeypatch):
    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: available))
    monkeypatch.setattr(CUDAAccelerator, "auto_device_count", staticmethod(lambda: 4))
    assert count_devices({}) == count_devices({"accelerator": "auto", "devices": "auto"}) == count
    assert count_devices({"accelerator": "cpu"}) == 1
    for accelerator in ("gpu", "cuda"):
        if available:
            assert count_devices({"accelerator": accelerator, "devices": -1}) == 4
        else:
            with pytest.raises(
                ConfigError, match=r"^trainer\.devices: 'auto': .* no device for accelerator=cuda; a number"
            ):
                count_devices({"accelerator": accelerator})


def test_an_accelerator_that_there_is_not():
    with pytest.raises(ConfigError, match=r"^trainer\.devices: must be a number of devices"):
        count_devices({"accelerator": "abacus"})


def test_the_best_can_be_tested_where_there_is_a_dev_wer():
    for trainer in (
        {},
        {"limit_val_batches": 2},
        {"check_val_every_n_epoch": 2, "max_epochs": 2, "limit_val_batches": None},
    ):
        chosen = settings(trainer=trainer, checkpoint={"test": "best"})
        assert chosen.validates
    assert not settings(trainer={"limit_val_batches": 0.0}).validates


def test_a_home_directory_is_expanded_once(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert settings(resume_from="~/last.ckpt").resume_from == "/home/me/last.ckpt"
    assert settings(resume_from="~nobody_there/last.ckpt").resume_from == "~nobody_there/last.ckpt", "which is no file"
    assert settings().resume_from is None
