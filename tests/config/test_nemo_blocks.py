"""What NeMo's blocks say in another way than ours, and the `_target_` of Hydra's."""

import logging
import sys

import pytest
import torch
from torch import nn

from lightning_novograd import build_optimizers, parse_optim
from lightning_novograd.errors import ConfigError
from lightning_novograd.optim.novograd.optimizer import NovoGrad
from lightning_novograd.registry import register_optimizer, unregister_optimizer

COSINE = {"name": "CosineAnnealing", "max_steps": 10}


def lines(caplog, level=logging.INFO):
    return [record.getMessage() for record in caplog.records if record.levelno == level]


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("torch.optim.AdamW", "AdamW"),
        ("torch.optim.Adam", "Adam"),
        ("torch.optim.adamw.AdamW", "AdamW"),
        ("lightning_novograd.NovoGrad", "NovoGrad"),
        ("lightning_novograd.optim.NovoGrad", "NovoGrad"),
        ("lightning_novograd.optim.novograd.optimizer.NovoGrad", "NovoGrad"),
    ],
)
def test_a_target_that_is_a_registered_class_is_its_name(target, name):
    assert parse_optim({"_target_": target, "lr": 0.1}) == parse_optim({"name": name, "lr": 0.1})


def test_a_schedule_may_have_a_target_and_so_may_its_members():
    torchs = "torch.optim.lr_scheduler"
    by_path = {
        "_target_": f"{torchs}.SequentialLR",
        "milestones": [3],
        "schedulers": [
            {"_target_": f"{torchs}.LinearLR", "total_iters": 3},
            {"_target_": f"{torchs}.ExponentialLR", "gamma": 0.9},
        ],
    }
    by_name = {
        "name": "SequentialLR",
        "milestones": [3],
        "schedulers": [{"name": "LinearLR", "total_iters": 3}, {"name": "ExponentialLR", "gamma": 0.9}],
    }
    assert parse_optim({"name": "sgd", "sched": by_path}) == parse_optim({"name": "sgd", "sched": by_name})
    ours = "lightning_novograd.lr_scheduler.CosineAnnealing"
    named = {"_target_": ours, "max_steps": 10}
    assert parse_optim({"name": "sgd", "sched": named}) == parse_optim({"name": "sgd", "sched": COSINE})


def test_a_class_of_ones_own_is_known_by_its_path_once_registered():
    with pytest.raises(ConfigError, match=r"^optim\._target_: '.*_Mine' is refused"):
        parse_optim({"_target_": f"{__name__}._Mine"})
    register_optimizer("of_my_own", _Mine)
    try:
        assert parse_optim({"_target_": f"{__name__}._Mine"}).name == "of_my_own"
    finally:
        unregister_optimizer("of_my_own")


class _Mine(torch.optim.SGD):
    pass


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("nemo.core.optim.novograd.Novograd", "; write name: NovoGrad"),
        ("apex.optimizers.FusedAdam", "; write name: fused_adam"),
        ("apex.optimizers.FusedNovoGrad", "; write name: NovoGrad"),
        ("nemo.core.optim.lr_scheduler.CosineAnnealing", "; write name: CosineAnnealing"),
        ("nemo.lightning.pytorch.optim.CosineAnnealingScheduler", "; write name: CosineAnnealing"),
        ("torch.optim.adamW", "; write name: AdamW"),
        ("nemo.lightning.MegatronOptimizerModule", ""),
        ("os.system", ""),
        ("AdamW", "; write name: AdamW"),
        ("", ""),
        (None, ""),
        (3, ""),
        (["torch.optim.AdamW"], ""),
        ({"torch.optim": "AdamW"}, ""),
    ],
)
def test_other_targets_are_refused_with_the_name_if_there_is_one(target, hint):
    with pytest.raises(ConfigError) as caught:
        parse_optim({"_target_": target, "lr": 0.1})
    assert caught.value.path == "optim._target_"
    assert caught.value.problem == (
        f"{target!r} is refused: a config cannot name code; classes are chosen by `name` from the registry "
        f"(register_optimizer, register_scheduler){hint}"
    )


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (
            {"_target_": "torch.optim.AdamW", "name": "adamw"},
            r"^optim\._target_: .* but optim\.name is 'adamw'; give one",
        ),
        ({"_target_": "torch.optim.lr_scheduler.StepLR"}, r"^optim\._target_: '.*StepLR' is no optimizer"),
        ({"name": "sgd", "sched": {"_target_": "torch.optim.SGD"}}, r"^optim\.sched\._target_: .* is no scheduler"),
        ({"name": "sgd", "larc": {"_target_": "torch.optim.SGD"}}, r"^optim\.larc\._target_: unknown key"),
        ({"name": "adam", "betas": {"_target_": "torch.optim.SGD"}}, r"^optim\.betas: expected a list of 2"),
        ({"_target_": "torch.optim.AdamW", "_partial_": True}, r"^optim\._partial_: True is refused"),
    ],
)
def test_a_target_in_the_wrong_place_is_refused(block, message):
    with pytest.raises(ConfigError, match=message):
        parse_optim(block)


def test_nothing_is_imported_to_look_at_a_target(tmp_path, monkeypatch):
    (tmp_path / "never_imported.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="is refused"):
        parse_optim({"_target_": "never_imported.AdamW"})
    assert "never_imported" not in sys.modules


def test_fused_adam_is_torchs_adamw_with_apexs_defaults(caplog):
    caplog.set_level(logging.INFO, "lightning_novograd")
    config = parse_optim({"name": "fused_adam", "lr": 2e-4, "betas": [0.9, 0.98]})
    assert lines(caplog) == ["optim.name: fused_adam is torch's AdamW with fused: true"]
    assert config == parse_optim(
        {"name": "adamw", "lr": 2e-4, "betas": [0.9, 0.98], "fused": True, "weight_decay": 0.0}
    )
    weight = nn.Linear(3, 2)
    optimizer = build_optimizers(config, weight)["optimizer"]
    assert type(optimizer) is torch.optim.AdamW
    assert (optimizer.defaults["fused"], optimizer.defaults["weight_decay"]) == (True, 0.0)
    weight(torch.ones(1, 3)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("arguments", "name", "args"),
    [
        ({"adam_w_mode": True, "weight_decay": 0.01}, "AdamW", {"fused": True, "weight_decay": 0.01}),
        ({"adam_w_mode": False}, "Adam", {"fused": True, "weight_decay": 0.0}),
        ({"adam_w_mode": None, "weight_decay": None}, "AdamW", {"fused": True, "weight_decay": 0.0}),
        ({"fused": False}, "AdamW", {"fused": False, "weight_decay": 0.0}),
        (
            {"bias_correction": True, "set_grad_none": True, "master_weights": False, "amsgrad": True},
            "AdamW",
            {"amsgrad": True, "fused": True, "weight_decay": 0.0},
        ),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_apexs_arguments(arguments, name, args, legacy):
    given = {"args": {"name": "auto", "params": arguments}} if legacy else arguments
    config = parse_optim({"name": "Fused_Adam", **given})
    assert (config.name, dict(config.args)) == (name, args)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bias_correction": False}, r"^optim\.bias_correction: False: torch has no fused kernel for Adam without"),
        ({"set_grad_none": False}, r"^optim\.set_grad_none: False"),
        ({"master_weights": True}, r"^optim\.master_weights: True: .*bf16-mixed"),
        ({"adam_w_mode": 1}, r"^optim\.adam_w_mode: expected true or false, got 1"),
        ({"weight_decai": 0.1}, r"^optim\.weight_decai: unknown key; did you mean 'weight_decay'"),
        (
            {"args": {"params": {"master_weights": True}}},
            r"^optim\.args\.params\.master_weights: True",
        ),
    ],
)
def test_what_torch_does_not_have_of_apexs(arguments, message):
    with pytest.raises(ConfigError, match=message):
        parse_optim({"name": "fused_adam", "lr": 0.1, **arguments})


@pytest.mark.parametrize("name", ["distributed_fused_adam", "megatron_fused_adam", "mcore_distributed_optim"])
def test_optimizers_of_nemos_own_stack_are_refused_with_what_to_write(name):
    with pytest.raises(ConfigError, match=rf"^optim\.name: '{name}': .*; write name: fused_adam, and"):
        parse_optim({"name": name, "lr": 0.1, "overlap_grad_sync": True})


@pytest.mark.parametrize("name", ["fused_adam", "distributed_fused_adam"])
def test_a_registered_class_of_that_name_is_taken(name):
    register_optimizer("another", NovoGrad, aliases=[name])
    try:
        assert parse_optim({"name": name}).name == "another"
    finally:
        unregister_optimizer("another")


def test_iters_per_batch_where_nemo_does_not_read_it():
    args = {"name": "auto", "warmup_ratio": 0.1}
    plain = {"name": "CosineAnnealing", "max_steps": 10, "args": args}
    block = {"name": "sgd", "sched": {**plain, "iters_per_batch": 1}}
    assert parse_optim(block) == parse_optim({"name": "sgd", "sched": plain})


@pytest.mark.parametrize(
    ("sched", "path"),
    [
        ({"iters_per_batch": 1}, "optim.sched.iters_per_batch"),
        ({"args": {"name": "auto", "iters_per_batch": 1}}, "optim.sched.args.iters_per_batch"),
        ({"args": {"name": "auto"}, "iters_per_batch": "1"}, "optim.sched.iters_per_batch"),
        ({"args": {"name": "auto"}, "iters_per_batch": True}, "optim.sched.iters_per_batch"),
        ({"args": {"name": "auto"}, "t_num_workers": 1}, "optim.sched.t_num_workers"),
    ],
)
def test_runtime_keys_that_would_have_an_effect_are_refused(sched, path):
    with pytest.raises(ConfigError, match="the trainer is asked") as caught:
        parse_optim({"name": "sgd", "sched": {**COSINE, **sched}})
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("sched", "warned"),
    [
        ({"name": "StepLR", "step_size": 2}, True),
        ({"name": "StepLR", "step_size": 2, "interval": None}, True),
        ({"name": "StepLR", "step_size": 2, "interval": "epoch"}, False),
        ({"name": "StepLR", "step_size": 2, "interval": "step"}, False),
        ({"name": "ExponentialLR", "gamma": 0.9}, False),
        (COSINE, False),
    ],
)
def test_step_lr_says_that_nemo_steps_it_with_the_optimizer(sched, warned, caplog):
    parse_optim({"name": "sgd", "sched": sched})
    text = (
        "optim.sched: StepLR is stepped once per epoch, in NeMo with the optimizer; "
        "write interval: step for that, interval: epoch if epochs are meant"
    )
    assert lines(caplog, logging.WARNING) == [text] * warned


def test_vits_decay_is_gamma():
    block = {"name": "adamw", "sched": {"name": "ExponentialLR", "lr_decay": 0.9}}
    assert parse_optim(block).sched.args == {"gamma": 0.9}
    with pytest.raises(ConfigError, match=r"^optim\.sched\.lr_decay: 0\.9, but optim\.sched\.gamma is 0\.8; give one"):
        parse_optim({"name": "adamw", "sched": {"name": "ExponentialLR", "gamma": 0.8, "lr_decay": 0.9}})
    with pytest.raises(ConfigError, match=r"^optim\.sched\.lr_decay: unknown key"):
        parse_optim({"name": "adamw", "sched": {**COSINE, "lr_decay": 0.9}})


def test_the_schedule_of_rad_tts_is_none(caplog):
    sched = {"name": "exp_decay", "warmup_steps": 40000, "last_epoch": -1, "d_model": 1}
    assert parse_optim({"name": "radam", "sched": sched}).sched is None
    (line,) = lines(caplog, logging.WARNING)
    assert line == "optim.sched: NeMo's RAD-TTS has no schedule, whatever its config says: the LR is constant"
    for other in ({"d_model": "1"}, {"warmup_steps": 0.1}, {"min_lr": 0.0}, {"name": "ExpDecay"}):
        with pytest.raises(ConfigError, match=r"^optim\.sched\.(warmup_steps|d_model): unknown key"):
            parse_optim({"name": "radam", "sched": {**sched, **other}})
