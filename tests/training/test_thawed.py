"""Thawed parameters join the optimizer that the block has for them, also where all of its own were frozen."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from tiny_fit import Step, loader, trainer
from torch import nn

from lightning_novograd.errors import ConfigError
from lightning_novograd.training.mixin import OptimMixin

SGD = {"match": "backbone.*weight", "optimizer": {"name": "sgd", "lr": 0.5, "momentum": 0.9}, "lr_mult": 0.1}
BLOCK = {"name": "adamw", "lr": 0.001, "param_groups": [SGD]}


class Thaws(OptimMixin, Step, pl.LightningModule):
    """Thaws what `frozen` names in the second epoch; `how` adds the parameters to the optimizer."""

    def __init__(self, optim, frozen=("backbone.0",), how="thawed_groups") -> None:
        super().__init__()
        self.optim_config = optim
        self.backbone, self.layer = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), nn.Linear(3, 1)
        self.how = how
        self.frozen = [p for name in frozen for p in self.get_submodule(name).parameters()]
        for parameter in self.frozen:
            parameter.requires_grad_(False)

    def training_step(self, batch, batch_idx):
        return self.layer(self.backbone(batch)).square().mean()

    def on_train_epoch_start(self):
        if self.current_epoch != 1 or not self.frozen:
            return
        for parameter in self.frozen:
            parameter.requires_grad_(True)
        optimizer = self.trainer.optimizers[0]
        added = {
            "thawed_groups": lambda: self.thawed_groups(self.frozen),
            "one by one": lambda: [{"params": [parameter]} for parameter in self.frozen],
            "all at once": lambda: [{"params": self.frozen, "lr": 0.01}],
        }[self.how]()
        for group in added:
            optimizer.add_param_group(group)


def fit(net, epochs=2, **settings):
    run = trainer(max_epochs=epochs, **settings)
    run.fit(net, loader(), ckpt_path=settings.get("ckpt_path"))
    return run


def places(run, net):
    """(class of the optimizer, LR) of each parameter."""
    names = {parameter: name for name, parameter in net.named_parameters()}
    return {
        names[p]: (group.get("optimizer"), pytest.approx(group.get("initial_lr", group["lr"])))
        for group in run.optimizers[0].param_groups
        for p in group["params"]
    }


def expected(net, block=("AdamW", 0.001), rule=("SGD", 0.05)):
    return {
        name: rule if name.startswith("backbone") and name.endswith("weight") else block
        for name, _ in net.named_parameters()
    }


FROZEN = {
    "some": ("backbone.0",),
    "all of the rule": ("backbone",),
    "all but the rule": ("backbone.0", "layer"),
}


@pytest.mark.parametrize("how", ["thawed_groups", "one by one"])
@pytest.mark.parametrize("frozen", FROZEN.values(), ids=FROZEN)
@pytest.mark.parametrize("around", [{}, {"larc": True}, {"sched": {"name": "cosine"}}], ids=["plain", "larc", "sched"])
def test_thawed_parameters_join_the_optimizer_of_their_rule(how, frozen, around, recwarn):
    net = Thaws({**BLOCK, **around}, frozen, how)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    run = fit(net)
    assert places(run, net) == expected(net)
    assert not [w for w in recwarn.list if "join" in str(w.message)]
    for name, parameter in net.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_a_part_of_which_only_the_bias_trains_is_no_block():
    net = Thaws({**BLOCK, "param_groups": [{**SGD, "match": "*weight"}]}, ("backbone", "layer"))
    net.layer.weight.requires_grad_(True)  # so the rule's part has parameters at first, and the block's has none
    net.frozen = [parameter for parameter in net.frozen if parameter is not net.layer.weight]
    run = fit(net)
    assert {name: place[0] for name, place in places(run, net).items()} == {
        name: "SGD" if name.endswith("weight") else "AdamW" for name, _ in net.named_parameters()
    }


def test_a_rule_with_a_schedule_of_its_own_drives_what_is_thawed():
    rule = {"match": "backbone.*", "sched": {"name": "WarmupAnnealing", "max_steps": 16}}
    net = Thaws({"name": "sgd", "lr": 0.1, "sched": {"name": "cosine"}, "param_groups": [rule]}, ("backbone",))
    run = fit(net)
    assert {name: place[0] for name, place in places(run, net).items()} == {
        name: "SGD#1" if name.startswith("backbone") else "SGD#0" for name, _ in net.named_parameters()
    }
    lrs = {group["optimizer"]: group["lr"] for group in run.optimizers[0].param_groups if group["params"]}
    assert lrs == {"SGD#0": pytest.approx(0.0), "SGD#1": pytest.approx(0.05)}


def test_depth_is_of_the_rules_own_optimizer():
    net = Thaws({**BLOCK, "layer_decay": 0.5}, ("backbone",))
    assert places(fit(net), net) == {  # in the order in which they were registered, `layer` first
        "layer.weight": ("AdamW", 0.00025),
        "layer.bias": ("AdamW", 0.00025),
        "backbone.0.weight": ("SGD", 0.025),
        "backbone.0.bias": ("AdamW", 0.0005),
        "backbone.1.weight": ("SGD", 0.05),
        "backbone.1.bias": ("AdamW", 0.001),
    }


def test_a_group_of_parameters_of_several_optimizers_is_one_for_each(recwarn):
    net = Thaws(BLOCK, ("backbone",), "all at once")
    run = fit(net)
    own = {name: place for name, place in places(run, net).items() if name.startswith("backbone")}
    assert own == {name: ("SGD" if name.endswith("weight") else "AdamW", 0.01) for name in own}
    assert not [w for w in recwarn.list if "join" in str(w.message)]


def test_a_group_with_several_rules_in_one_optimizer_is_said():
    net = Thaws({**BLOCK, "no_decay": "backbone.0.bias"}, ("backbone",), "all at once")
    with pytest.warns(UserWarning, match="4 parameters join optim as one param group for each optimizer, with its opt"):
        run = fit(net)
    assert {name: place[0] for name, place in places(run, net).items()} == {
        name: place[0] for name, place in expected(net).items()
    }


@pytest.mark.parametrize("match", ["backbone.*", "layer.*"])
def test_backbone_finetuning_and_a_run_that_resumes_after_it(match, tmp_path):
    def settings():
        return {"callbacks": [BackboneFinetuning(unfreeze_backbone_at_epoch=1)]}

    block = {**BLOCK, "param_groups": [{**SGD, "match": match}]}
    net = Thaws(block, ())
    run = fit(net, **settings())
    assert {name: place[0] for name, place in places(run, net).items()} == {
        name: "SGD" if name.startswith(match[:-1]) else "AdamW" for name, _ in net.named_parameters()
    }
    run.save_checkpoint(tmp_path / "thawed.ckpt")
    other = Thaws(block, ())
    resumed = trainer(max_epochs=3, **settings())
    resumed.fit(other, loader(), ckpt_path=tmp_path / "thawed.ckpt")
    run.fit_loop.max_epochs = 3
    assert {name: place[0] for name, place in places(resumed, other).items()} == {
        name: place[0] for name, place in places(run, net).items()
    }
    assert resumed.global_step == 12


def test_a_part_that_stays_frozen_changes_nothing():
    """An optimizer without parameters steps, is saved and loaded with the others."""
    net = Thaws(BLOCK, ("backbone",))
    net.frozen = []
    run = fit(net)
    assert places(run, net) == {"layer.weight": ("AdamW", 0.001), "layer.bias": ("AdamW", 0.001)}
    assert not any(p.requires_grad or p.grad is not None for p in net.backbone.parameters())
    run.optimizers[0].load_state_dict(run.optimizers[0].state_dict())


def test_a_module_that_is_frozen_as_a_whole_is_refused_still():
    with pytest.raises(ConfigError, match="has no trainable parameters"):
        fit(Thaws(BLOCK, ("backbone", "layer")))


BOUND = {
    "OneCycleLR": {"name": "OneCycleLR", "max_lr": 0.1},
    "CyclicLR": {"name": "CyclicLR", "base_lr": 0.001, "max_lr": 0.1},
    "CosineAnnealingWarmRestarts": {"name": "CosineAnnealingWarmRestarts", "T_0": 4, "interval": "step"},
    "StepLR in a SequentialLR": {
        "name": "SequentialLR",
        "schedulers": [{"name": "cosine", "max_steps": 6}, {"name": "StepLR", "step_size": 2}],
        "milestones": [6],
        "interval": "step",
    },
}
FREE = {
    "cosine": {"name": "cosine"},
    "CosineAnnealingLR": {"name": "CosineAnnealingLR", "interval": "step"},
    "StepLR": {"name": "StepLR", "step_size": 3, "interval": "step"},
    "ExponentialLR": {"name": "ExponentialLR", "gamma": 0.9, "interval": "step"},
    "PolynomialLR": {"name": "PolynomialLR", "interval": "step"},
    "LinearLR": {"name": "LinearLR", "interval": "step"},
    "MultiStepLR": {"name": "MultiStepLR", "milestones": [3], "interval": "step"},
}


@pytest.mark.parametrize("name", BOUND)
def test_a_schedule_that_cannot_drive_a_group_that_joins_says_so_before_it_joins(name):
    net = Thaws({"name": "sgd", "lr": 0.01, "momentum": 0.9, "sched": BOUND[name]}, ())
    with pytest.raises(ConfigError, match=rf"optim\.sched: {name} drives .* CosineAnnealing and all others"):
        fit(net, callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=1)])
    assert len(net.trainer.optimizers[0].param_groups) == 1


@pytest.mark.parametrize("sched", FREE.values(), ids=FREE)
@pytest.mark.filterwarnings("ignore:param group 1 was added")
def test_those_that_the_message_names_drive_it(sched):
    net = Thaws({"name": "sgd", "lr": 0.01, "momentum": 0.9, "sched": sched}, ())
    run = fit(net, epochs=3, callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=1)])
    assert [len(group["params"]) for group in run.optimizers[0].param_groups] == [2, 4]


def test_one_cycle_drives_a_group_that_brings_its_lrs():
    net = Thaws({"name": "sgd", "lr": 0.01, "sched": {**BOUND["OneCycleLR"], "cycle_momentum": False}}, ())
    run = fit(net)
    run.optimizers[0].add_param_group(
        {"params": [nn.Parameter(torch.zeros(2))], "lr": 0.1, "initial_lr": 0.1, "max_lr": 0.2, "min_lr": 0.0}
    )
    assert run.optimizers[0].param_groups[1]["max_lr"] == 0.2


def test_a_schedule_that_cannot_drive_what_joins_another_part_is_no_hindrance():
    rule = {"match": "backbone.*", "sched": {"name": "WarmupAnnealing", "max_steps": 16}}
    sched = {**BOUND["OneCycleLR"], "cycle_momentum": False}
    net = Thaws({"name": "sgd", "lr": 0.1, "sched": sched, "param_groups": [rule]}, ("backbone",))
    assert {name: place[0] for name, place in places(fit(net), net).items()} == {
        name: "SGD#1" if name.startswith("backbone") else "SGD#0" for name, _ in net.named_parameters()
    }
