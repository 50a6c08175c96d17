"""Rules with an optimizer, a schedule or factors of their own: from the block to what is built."""

import logging

import pytest
import torch
from torch import nn

from lightning_novograd import LARC, NovoGrad, build_optimizers
from lightning_novograd.config import parse_optim
from lightning_novograd.errors import ConfigError
from lightning_novograd.lr_scheduler.parts import PartsLR
from lightning_novograd.optim.composite import Composite

MUON = {"match": "body.*.weight", "optimizer": {"name": "muon", "lr": 0.02}}
ADAMW = {"match": "embed.*", "optimizer": "adamw"}


def net() -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    return nn.ModuleDict({"embed": nn.Embedding(5, 4), "body": body, "head": nn.Linear(4, 5)})


def loss_of(model: nn.Module) -> torch.Tensor:
    return model["head"](model["body"](model["embed"](torch.arange(5)))).square().mean()


def build(block: dict, max_steps: int | None = 10) -> dict:
    return build_optimizers({"name": "novograd", "lr": 0.05, **block}, net(), max_steps=max_steps)


def test_what_no_rule_takes_gets_the_blocks_optimizer():
    built = build({"param_groups": [MUON, ADAMW]})
    composite = built["optimizer"]
    assert isinstance(composite, Composite)
    assert [type(part).__name__ for part in composite.optimizers] == ["NovoGrad", "Muon", "AdamW"]
    assert [len(group["params"]) for group in composite.param_groups] == [4, 2, 1]
    assert [group["lr"] for group in composite.param_groups] == [0.05, 0.02, 0.001]


def test_each_part_steps_as_it_would_alone():
    model, parts = net(), net()
    built = build_optimizers({"name": "novograd", "lr": 0.05, "param_groups": [MUON, ADAMW]}, model)
    named = dict(parts.named_parameters())
    body = [named[f"body.{i}.weight"] for i in range(2)]
    alone = [
        NovoGrad([p for n, p in named.items() if "embed" not in n and not (n[:4] == "body" and n[-1] == "t")], lr=0.05),
        torch.optim.Muon(body, lr=0.02),
        torch.optim.AdamW([named["embed.weight"]]),
    ]
    for _ in range(3):
        for module, optimizers in ((model, [built["optimizer"]]), (parts, alone)):
            module.zero_grad()
            loss_of(module).backward()
            for optimizer in optimizers:
                optimizer.step()
    torch.testing.assert_close(list(model.parameters()), list(parts.parameters()), rtol=0, atol=0)


def test_a_single_part_is_that_optimizer():
    """Nothing is left for the block's own."""
    built = build({"param_groups": [{"match": "*", "optimizer": {"name": "sgd", "lr": 0.3}}]})
    assert type(built["optimizer"]) is torch.optim.SGD


def test_one_schedule_drives_all_from_their_own_lrs():
    built = build({"param_groups": [MUON, ADAMW], "sched": {"name": "cosine", "min_lr": 0.0}})
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.025, 0.01, 0.0005])


def test_a_rule_may_have_a_schedule_of_its_own():
    rule = {**MUON, "sched": {"name": "StepLR", "step_size": 2, "gamma": 0.5, "interval": "step"}}
    built = build({"param_groups": [rule], "sched": {"name": "cosine", "min_lr": 0.0}})
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
    assert isinstance(scheduler, PartsLR)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.025, 0.005])
    assert scheduler.get_last_lr() == [group["lr"] for group in optimizer.param_groups]
    assert (scheduler.last_epoch, built["lr_scheduler"]["interval"]) == (5, "step")


def test_a_schedule_of_a_rule_with_the_blocks_optimizer():
    rule = {"match": "head.*", "sched": {"name": "polynomial", "min_lr": 0.0, "power": 1.0}}
    built = build({"param_groups": [rule]})
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
    assert [type(part) for part in optimizer.optimizers] == [NovoGrad, NovoGrad]
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.025])


def test_schedules_of_parts_go_on_where_they_were():
    rule = {**MUON, "sched": {"name": "polynomial", "min_lr": 0.0, "power": 2.0}}
    block = {"param_groups": [rule], "sched": {"name": "cosine", "warmup_steps": 2}}
    whole, first, second = (build(block) for _ in range(3))
    for built, steps in ((whole, 8), (first, 4)):
        for _ in range(steps):
            built["optimizer"].step()
            built["lr_scheduler"]["scheduler"].step()
    second["optimizer"].load_state_dict(first["optimizer"].state_dict())
    second["lr_scheduler"]["scheduler"].load_state_dict(first["lr_scheduler"]["scheduler"].state_dict())
    for _ in range(4):
        second["optimizer"].step()
        second["lr_scheduler"]["scheduler"].step()
    lrs = [[group["lr"] for group in built["optimizer"].param_groups] for built in (whole, second)]
    assert lrs[0] == lrs[1]


OF_ALL = [("steps_per_batch", 2.0), ("log_name", "mine"), ("strict", False), ("monitor", "loss")]


@pytest.mark.parametrize(("key", "value"), OF_ALL)
def test_keys_that_hosts_know_once_are_refused_in_one_of_several_schedules(key, value):
    cosine, other = {"name": "cosine"}, {"name": "polynomial", key: value}
    first, second = {"match": "body.*", "sched": cosine}, {"match": "embed.*", "sched": other}
    for block, where, says in (
        ({"sched": cosine, "param_groups": [second]}, 0, "optim.sched"),
        ({"sched": {**cosine, key: 7.0 if value == 2.0 else "x"}, "param_groups": [second]}, 0, "optim.sched"),
        ({"param_groups": [first, second]}, 1, r"optim.param_groups\[0\].sched"),
    ):
        if key == "strict" and key in block.get("sched", {}):
            continue
        with pytest.raises(ConfigError, match=f"{value!r} has no effect: .* as {says} says; say {key} there") as caught:
            parse_optim({"name": "sgd", **block})
        assert caught.value.path == f"optim.param_groups[{where}].sched.{key}"


@pytest.mark.parametrize(("key", "value"), OF_ALL)
def test_they_may_be_said_once_for_all(key, value):
    rules = [{"match": "body.*", "sched": {"name": "cosine", key: value}}, {"match": "*", "sched": {"name": "cosine"}}]
    assert (
        parse_optim({"name": "sgd", "param_groups": rules}).stepped
        == parse_optim({"name": "sgd", "param_groups": rules[:1]}).stepped
    )
    parse_optim({"name": "sgd", "sched": {"name": "cosine", key: value}, "param_groups": rules})


def test_what_the_blocks_schedule_says_holds_where_rules_leave_it_nothing():
    sched = {"name": "cosine", "log_name": "lr", "strict": False, "monitor": "loss"}
    entry = build({"sched": sched, "param_groups": [{"match": "*", "sched": {"name": "polynomial"}}]})["lr_scheduler"]
    assert (entry["name"], entry["strict"], entry["monitor"]) == ("lr", False, "loss")


@pytest.mark.parametrize("where", ["sched", "param_groups[0].sched"])
def test_a_pace_of_manual_optimization_is_refused_where_nobody_counts_batches(where):
    sched = {"name": "cosine", "steps_per_batch": 0.5}
    block = {"sched": sched} if where == "sched" else {"param_groups": [{"match": "head.*", "sched": sched}]}
    with pytest.raises(ConfigError, match=r"0\.5, but here nobody counts batches, .*give max_steps") as caught:
        build(block)
    assert caught.value.path == f"optim.{where}.steps_per_batch"


def test_schedules_of_other_parts_are_refused():
    rule = {**MUON, "sched": {"name": "polynomial"}}
    built, other = build({"param_groups": [rule], "sched": {"name": "cosine"}}), build({"param_groups": [rule]})
    state = built["lr_scheduler"]["scheduler"].state_dict()
    with pytest.raises(ValueError, match="2 schedules of parts, the config 1"):
        other["lr_scheduler"]["scheduler"].load_state_dict(state)


@pytest.mark.parametrize(
    ("block", "kinds", "whole"),
    [
        ({"larc": True, "param_groups": [ADAMW]}, [NovoGrad, torch.optim.AdamW], LARC),
        ({"param_groups": [{"match": "embed.*", "optimizer": {"name": "sgd", "larc": True}}]}, [NovoGrad, LARC], None),
    ],
    ids=["around all", "around one"],
)
def test_larc(block, kinds, whole):
    optimizer = build(block)["optimizer"]
    if whole is not None:
        assert (type(optimizer), optimizer.target) == (LARC, "update")
        optimizer = optimizer.optimizer
    assert [type(part) for part in optimizer.optimizers] == kinds


def test_no_decay_and_layer_decay_hold_in_every_part():
    rule = {"match": "body.*", "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}, "lr_mult": 0.5}
    built = build({"weight_decay": 0.001, "no_decay": "bias", "layer_decay": 0.5, "param_groups": [rule]})
    found = {group["name"]: (group["lr"], group["weight_decay"]) for group in built["optimizer"].param_groups}
    assert found == {
        "default": (0.05, 0.001),
        "default, no decay": (0.05, 0.0),
        "default, lr x 0.125": (pytest.approx(0.00625), 0.001),
        "body.*, lr x 0.5": (pytest.approx(0.0025), 0.1),
        "body.*, lr x 0.5, no decay": (pytest.approx(0.0025), 0.0),
        "body.*, lr x 0.25": (pytest.approx(0.00125), 0.1),
        "body.*, lr x 0.25, no decay": (pytest.approx(0.00125), 0.0),
    }


def test_the_log_has_a_table_of_the_groups(caplog):
    with caplog.at_level(logging.INFO, "lightning_novograd"):
        build({"weight_decay": 0.001, "no_decay": "bias", "param_groups": [MUON]})
    (table,) = [record.getMessage() for record in caplog.records if "Param groups" in record.getMessage()]
    assert [line.split() for line in table.splitlines()[1:]] == [
        ["group", "tensors", "elements", "lr", "weight", "decay", "optimizer"],
        ["default", "2", "40", "0.05", "0.001", "NovoGrad"],
        ["default,", "no", "decay", "3", "13", "0.05", "0", "NovoGrad"],
        ["body.*.weight", "2", "32", "0.02", "0.1", "Muon"],
    ]


@pytest.mark.parametrize(
    ("block", "path", "problem"),
    [
        ({"param_groups": [{"match": "*", "optimizer": {"name": "mouon"}}]}, "param_groups[0].optimizer.name", "Muon"),
        ({"param_groups": [{"match": "*", "optimizer": {"lr": 1.0}}]}, "param_groups[0].optimizer.name", "missing"),
        (
            {"param_groups": [{"match": "*", "optimizer": 3}]},
            "param_groups[0].optimizer",
            "expected a text or a mapping",
        ),
        (
            {"param_groups": [{"match": "*", "optimizer": {"name": "sgd", "momentun": 0.9}}]},
            "param_groups[0].optimizer.momentun",
            "did you mean 'momentum'?",
        ),
        (
            {"param_groups": [{"match": "*", "optimizer": {"name": "sgd", "momentum": 9.0}}]},
            "param_groups[0].optimizer.momentum",
            "9.0 is out of range",
        ),
        (
            {"param_groups": [{"match": "*", "optimizer": {"name": "novograd", "betas": [0.9, 2.0]}}]},
            "param_groups[0].optimizer.betas",
            "refuses it",
        ),
        ({"param_groups": [{"match": "*", "optimizer": "sgd", "lr": 0.1}]}, "param_groups[0].lr", "unknown key"),
        (
            {"param_groups": [{"match": "*", "optimizer": "adamw", "betas": [0.9, 0.95]}]},
            "param_groups[0].betas",
            "write optimizer: {name: AdamW, betas: [0.9, 0.95]}",
        ),
        (
            {"param_groups": [{"match": "*", "optimizer": {"name": "sgd"}, "wight_decay": 0.1}]},
            "param_groups[0].wight_decay",
            "unknown key. Allowed: larc, lr_mult",
        ),
        (
            {"param_groups": [{"match": "*", "optimizer": "lbfgs"}]},
            "param_groups[0].optimizer.name",
            "LBFGS cannot be one of several optimizers",
        ),
        ({"name": "lbfgs", "param_groups": [ADAMW]}, "name", "LBFGS cannot be one of several optimizers"),
        (
            {"lr": 1e10, "param_groups": [{"match": "*", "lr_mult": 1e35}]},
            "param_groups[0].lr_mult",
            "1e+45 is beyond float32",
        ),
        (
            {"param_groups": [{"match": "*", "optimizer": {"name": "sgd", "weight_decay": 1e20}, "wd_mult": 1e20}]},
            "param_groups[0].wd_mult",
            "1e+40 is beyond float32",
        ),
        ({"param_groups": [{"match": "*", "lr": 0.1, "lr_mult": 0.1}]}, "param_groups[0].lr_mult", "lr is given too"),
        (
            {"param_groups": [{"match": "*", "weight_decay": 0.1, "wd_mult": 0.1}]},
            "param_groups[0].wd_mult",
            "weight_decay is given too",
        ),
        ({"param_groups": [{"match": "*", "lr_mult": -0.1}]}, "param_groups[0].lr_mult", "-0.1 is out of range"),
        (
            {"param_groups": [{"match": "*", "optimizer": "rprop", "wd_mult": 0.1}]},
            "param_groups[0].wd_mult",
            "Rprop has no weight_decay",
        ),
        (
            {"larc": True, "param_groups": [{"match": "*", "optimizer": {"name": "sgd", "larc": True}}]},
            "param_groups[0].optimizer.larc",
            "the whole block is under LARC already",
        ),
        (
            {
                "sched": {"name": "cosine"},
                "param_groups": [{"match": "*", "sched": {"name": "StepLR", "step_size": 2}}],
            },
            "param_groups[0].sched.interval",
            "epoch, but optim.sched.interval is step",
        ),
        (
            {
                "sched": {"name": "cosine"},
                "param_groups": [{"match": "*", "sched": {"name": "ReduceLROnPlateau", "monitor": "x"}}],
            },
            "param_groups[0].sched.name",
            "follows a metric",
        ),
        ({"layer_decay": 0.0}, "layer_decay.decay", "0.0 is out of range"),
        ({"layer_decay": 1.5}, "layer_decay.decay", "1.5 is out of range"),
        ({"layer_decay": {"layers": ["a"]}}, "layer_decay.decay", "missing"),
        (
            {"layer_decay": {"decay": 0.5, "layers": []}},
            "layer_decay.layers",
            "[] names no layer; expected a list of tex",
        ),
        ({"layer_decay": {"decay": 0.5, "layers": ""}}, "layer_decay.layers", "'' names no layer"),
        ({"layer_decay": {"decay": 0.5, "layer": "auto"}}, "layer_decay.layer", "did you mean 'layers'?"),
        ({"layer_decay": True}, "layer_decay", "expected a number or a mapping"),
    ],
)
def test_mistakes_are_named(block, path, problem):
    with pytest.raises(ConfigError) as caught:
        parse_optim({"name": "novograd", **block})
    assert caught.value.path == f"optim.{path}"
    assert problem in caught.value.problem


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ({"match": "embed.*", "optimizer": {"name": "muon"}}, None),
        ({"match": "head.bias", "optimizer": {"name": "muon"}}, "Muon refuses it"),
    ],
)
def test_what_an_optimizer_cannot_take_is_said_with_the_rules_path(rule, problem):
    if problem is None:
        assert type(build({"param_groups": [rule]})["optimizer"].optimizers[1]) is torch.optim.Muon
        return
    with pytest.raises(ConfigError, match=problem) as caught:
        build({"param_groups": [rule]})
    assert caught.value.path == "optim.param_groups[0].optimizer"


def test_clipping_comes_back_with_what_is_built():
    model = net()
    built = build_optimizers({"name": "sgd", "lr": 1.0, "grad_clip_norm": 0.5}, model)
    (1e4 * loss_of(model)).backward()
    before = nn.utils.get_total_norm([p.grad for p in model.parameters()])
    torch.testing.assert_close(built["clip_gradients"](), before)
    after = nn.utils.get_total_norm([p.grad for p in model.parameters()])
    torch.testing.assert_close(after, torch.tensor(0.5))


def test_clipping_by_value_comes_back_with_what_is_built():
    model = net()
    built = build_optimizers({"name": "sgd", "lr": 1.0, "grad_clip_value": 0.25}, model)
    (1e4 * loss_of(model)).backward()
    assert built["clip_gradients"]() is None
    assert max(p.grad.abs().max() for p in model.parameters()) == 0.25


def test_without_clipping_there_is_nothing_to_call():
    assert build({}).keys() == {"optimizer"}


@pytest.mark.parametrize(
    ("rule", "decay"),
    [
        ({"weight_decay": 0.2}, [0.2]),
        ({"optimizer": {"name": "adamw", "weight_decay": 0.3}}, [0.3, 0.0]),
        ({"optimizer": "adamw"}, [0.01, 0.0]),
        ({"wd_mult": 2.0}, [0.2, 0.0]),
    ],
    ids=["rule", "optimizer", "optimizer's default", "factor"],
)
def test_no_decay_leaves_what_a_rule_itself_says(rule, decay):
    block = {
        "name": "sgd",
        "lr": 0.1,
        "weight_decay": 0.1,
        "no_decay": ["bias"],
        "param_groups": [{"match": "*", **rule}],
    }
    optimizer = build_optimizers(block, nn.Linear(2, 2))["optimizer"]
    assert [group["weight_decay"] for group in optimizer.param_groups] == decay
