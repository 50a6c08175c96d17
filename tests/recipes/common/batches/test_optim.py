"""What the large_batch block makes of the optim block, and what is refused because it is said twice."""

from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig

from lightning_novograd import parse_optim
from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.training.settings import RunSettings, plan_batches
from lightning_novograd.recipes.common.batches.optim import command_line, planned_optim

OPTIM = {"name": "novograd", "lr": 0.02, "sched": {"name": "CosineAnnealing", "warmup_ratio": 0.1, "min_lr": 1e-5}}


def planned(large_batch: dict, optim: dict = OPTIM, data: dict | None = None):
    """The block and the LR of a run with a global batch of 64, unless it says another."""
    blocks = {name: {} for name in ("model", "logger", "checkpoint")}
    trainer = {"accelerator": "cpu", "devices": 2}
    settings = RunSettings.read(
        {**blocks, "trainer": trainer, "data": data or {}, "optim": optim, "large_batch": large_batch}, ""
    )
    return planned_optim(settings, plan_batches(settings, 32))


def scaled(rule: str = "linear", size: int = 16, lr: float | None = None, **more) -> dict:
    return {"reference": {"global_batch_size": size, "lr": lr}, "lr_scaling": rule, **more}


@pytest.mark.parametrize(
    ("large_batch", "lr", "said"),
    [
        ({}, 0.02, "LR 0.02 (optim.lr)"),
        ({"lr_scaling": "none"}, 0.02, "LR 0.02 (optim.lr)"),
        (scaled(), 0.08, "LR 0.08 = 0.02 (optim.lr, tuned at a global batch of 16) x 64 / 16"),
        (scaled("sqrt"), 0.04, "LR 0.04 = 0.02 (optim.lr, tuned at a global batch of 16) x sqrt(64 / 16)"),
        (scaled("none"), 0.02, "LR 0.02 = 0.02 (optim.lr, tuned at a global batch of 16), not scaled"),
        (
            scaled("sqrt", 256, 0.4),
            0.2,
            "LR 0.2 = 0.4 (large_batch.reference.lr, tuned at a global batch of 256) x sqrt(64 / 256)",
        ),
        (
            scaled("linear", 64, 0.3),
            0.3,
            "LR 0.3 = 0.3 (large_batch.reference.lr, tuned at a global batch of 64) x 64 / 64",
        ),
        (
            scaled("none", 16, 0.3),
            0.3,
            "LR 0.3 = 0.3 (large_batch.reference.lr, tuned at a global batch of 16), not scaled",
        ),
        (
            {**scaled("linear"), "global_batch_size": 128},
            0.16,
            "LR 0.16 = 0.02 (optim.lr, tuned at a global batch of 16) x 128 / 16",
        ),
    ],
)
def test_the_lr_follows_the_global_batch(large_batch, lr, said):
    block, planned_lr = planned(large_batch)
    assert block == {**OPTIM, "lr": pytest.approx(lr)}
    assert planned_lr.lr == block["lr"]
    assert str(planned_lr) == said
    assert OPTIM["lr"] == 0.02, "the config's own block stays"


def test_an_optimizer_without_an_lr():
    block, lr = planned({}, {"name": "sgd"})
    assert (block, str(lr)) == ({"name": "sgd"}, "LR: the optimizer's own, optim.lr is not given")
    with pytest.raises(ConfigError, match=r"^large_batch\.reference\.lr: is missing, and optim\.lr is None"):
        planned(scaled(), {"name": "sgd"})
    block, _ = planned(scaled("linear", 16, 0.1), {"name": "sgd"})
    assert block["lr"] == pytest.approx(0.4)


def test_all_lrs_of_the_block_are_of_the_same_batch():
    """Those of rules, of their optimizers, and those that schedules have of their own; factors and floors stay."""
    cycle = {"name": "OneCycleLR", "max_lr": 0.5, "interval": "step"}
    optim = {
        "name": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "sched": cycle,
        "param_groups": [
            {"match": "bias", "lr": 0.01, "weight_decay": 0.0},
            {"match": "norm", "lr_mult": 0.5},
            {"match": "*decoder*", "optimizer": {"name": "adamw", "lr": 0.001, "weight_decay": 0.01}},
        ],
    }
    block, _ = planned(scaled(), optim)
    assert block["lr"] == pytest.approx(0.4)
    assert block["sched"] == {**cycle, "max_lr": pytest.approx(2.0)}
    bias, norm, decoder = block["param_groups"]
    assert bias == {"match": "bias", "lr": pytest.approx(0.04), "weight_decay": 0.0}
    assert norm == {"match": "norm", "lr_mult": 0.5}
    assert decoder["optimizer"] == {"name": "adamw", "lr": pytest.approx(0.004), "weight_decay": 0.01}
    assert optim["param_groups"][0]["lr"] == 0.01
    parse_optim(block)


def test_the_lrs_of_the_members_of_a_schedule():
    members = [{"name": "ConstantLR"}, {"name": "CyclicLR", "base_lr": [0.01, 0.02], "max_lr": 0.1}]
    block, _ = planned(scaled(), {"name": "sgd", "lr": 0.1, "sched": {"name": "SequentialLR", "schedulers": members}})
    constant, cyclic = block["sched"]["schedulers"]
    assert constant == members[0]
    assert cyclic["base_lr"] == pytest.approx([0.04, 0.08])
    assert cyclic["max_lr"] == pytest.approx(0.4)


def test_nemos_nested_arguments():
    sched = {"name": "OneCycleLR", "args": {"max_lr": 0.5, "total_steps": 10}}
    block, _ = planned(scaled(), {"name": "sgd", "lr": 0.1, "sched": sched})
    assert block["sched"]["args"] == {"max_lr": pytest.approx(2.0), "total_steps": 10}


def test_a_schedule_whose_lr_is_its_own():
    cycle = {"name": "OneCycleLR", "max_lr": 0.5}
    with pytest.raises(ConfigError, match=r"^optim\.sched\.max_lr: is an LR of the schedule's own"):
        planned(scaled(lr=0.3), {"name": "sgd", "lr": 0.1, "sched": cycle})
    with pytest.raises(ConfigError, match=r"^optim\.sched\.name: T5.* sets an LR of its own, on which large_batch"):
        planned(scaled(), {"name": "sgd", "lr": 0.1, "sched": {"name": "T5InverseSquareRootAnnealing"}})


def test_the_warmup_is_a_share_of_the_run():
    block, _ = planned({"warmup_ratio": 0.25})
    assert block == {**OPTIM, "sched": {**OPTIM["sched"], "warmup_ratio": 0.25}}
    block, _ = planned({"warmup_ratio": 0.0}, {**OPTIM, "sched": {"name": "StepLR", "step_size": 3}})
    assert block["sched"]["warmup_ratio"] == 0.0
    nested = {"name": "CosineAnnealing", "args": {"min_lr": 0.0}}
    block, _ = planned({"warmup_ratio": 0.25}, {**OPTIM, "sched": nested})
    assert block["sched"] == {"name": "CosineAnnealing", "args": {"min_lr": 0.0, "warmup_ratio": 0.25}}


@pytest.mark.parametrize(
    ("sched", "message"),
    [
        (None, r"^large_batch\.warmup_ratio: is 0\.1, but optim\.sched is null"),
        ({"name": "CosineAnnealing", "warmup_steps": 100}, r"optim\.sched\.warmup_steps is 100; give one of them"),
        ({"name": "StepLR", "warmup_epochs": 2}, r"optim\.sched\.warmup_epochs is 2; give one of them"),
        ({"name": "CosineAnnealing", "args": {"warmup_steps": 100}}, r"optim\.sched\.warmup_steps is 100"),
        ("cosine", r"^optim\.sched: must be a mapping, not 'cosine'"),
    ],
)
def test_a_warmup_that_cannot_be(sched, message):
    with pytest.raises(ConfigError, match=message):
        planned({"warmup_ratio": 0.1}, {**OPTIM, "sched": sched})


def test_the_plugins_ramp_is_not_the_recipes():
    ramp = {"global_batch_size": 64, "per_device_batch_size": 8}
    with pytest.raises(ConfigError, match=r"^optim\.large_batch: .*the recipe's global batch is large"):
        planned({}, {**OPTIM, "large_batch": ramp})


TWICE = [
    (scaled(lr=0.1), "optim.lr", r"^optim\.lr: and large_batch\.reference\.lr=0\.1 decide the same"),
    (
        {"warmup_ratio": 0.2},
        "optim.sched.warmup_ratio",
        r"^optim\.sched\.warmup_ratio: and large_batch\.warmup",
    ),
    (
        {"global_batch_size": 64, "max_per_device_batch_size": 8},
        "data.batch_size",
        r"^data\.batch_size: and large_batch\.max_per_device_batch_size=8 decide the same",
    ),
]


@pytest.mark.parametrize("prefix", ["", "+", "++"])
@pytest.mark.parametrize(("large_batch", "key", "message"), TWICE)
def test_what_the_command_line_says_too_is_refused(monkeypatch, large_batch, key, message, prefix):
    """What an option brings gives way: each has an LR, a warmup and a batch size."""
    planned(large_batch)
    overrides = SimpleNamespace(overrides=SimpleNamespace(task=["model=quartznet_small", f"{prefix}{key}=0.5"]))
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: overrides)
    assert command_line() == {"model", key}
    with pytest.raises(ConfigError, match=message):
        planned(large_batch)
    planned(scaled())  # optim.lr is what is scaled
