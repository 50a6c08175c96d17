"""What Lightning users do around a fit: the LR finder, a second fit, thawed layers, compiled submodules, max_time."""

import copy
import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from tiny_fit import BLOCK, Net, Step, loader, trainer
from torch import nn

from lightning_novograd.errors import ConfigError
from lightning_novograd.training.attach import attach_optimizers
from lightning_novograd.training.mixin import OptimMixin

RULES = {
    "name": "sgd",
    "lr": 0.1,
    "weight_decay": 0.01,
    "no_decay": "bias",
    "param_groups": [{"match": "backbone.1.*", "weight_decay": 0.5}],
}


# ---------------------------------------------------------------------------------------------- the LR finder


def test_the_lr_finder_writes_into_the_block():
    torch.manual_seed(0)
    net, run = Net(BLOCK), trainer(max_epochs=2)
    found = Tuner(run).lr_find(net, loader(64), num_training=20, early_stop_threshold=None, update_attr=True)
    assert found.suggestion() not in (None, BLOCK["lr"])
    assert net.optim_config.args["lr"] == net.lr == found.suggestion()
    run.fit(net, loader())
    assert run.optimizers[0].param_groups[0]["initial_lr"] == found.suggestion()


@pytest.mark.parametrize(
    ("sched", "own"),
    [
        ({"name": "OneCycleLR", "max_lr": 0.4}, "OneCycleLR sets LRs of its own .*max_lr"),
        ({"name": "T5InverseSquareRootAnnealing", "constant_steps": 4}, "T5.* sets LRs of its own .its formula."),
        (
            {
                "name": "SequentialLR",
                "milestones": [2],
                "schedulers": [{"name": "LinearLR"}, {"name": "CyclicLR", "base_lr": 0.1, "max_lr": 0.4}],
                "interval": "step",
            },
            r"optim\.sched\.schedulers\[1\]: CyclicLR sets",
        ),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_an_lr_that_its_schedule_does_not_see_is_warned_of(sched, own):
    net = Net({"name": "sgd", "lr": 0.1, "momentum": 0.9, "sched": sched})
    with pytest.warns(UserWarning, match=own):
        net.lr = 0.01


def test_lr_is_the_blocks():
    net = Net(BLOCK)
    assert net.lr == 0.05
    net.lr = 0.25
    assert net.optim_config.args["lr"] == 0.25
    assert Net({"name": "sgd"}).lr == 1e-3  # torch's default


def test_without_a_block_there_is_no_lr():
    assert not hasattr(Net(), "lr")
    with pytest.raises(ConfigError, match="no optim block"):
        Net().lr = 0.1


def test_a_foreign_modules_own_lr_stays_its_own():
    class Foreign(Step, pl.LightningModule):
        @property
        def lr(self):
            return "mine"

    assert attach_optimizers(Foreign(), BLOCK).lr == "mine"


class OwnLr(Step, pl.LightningModule):
    """Its `lr` is a weight of the loss."""

    def __init__(self, lr) -> None:
        super().__init__()
        self.lr = lr


class OwnLrOfMixin(OptimMixin, OwnLr):
    def __init__(self, optim, lr, block_first) -> None:
        super().__init__(lr)
        if block_first:
            self.optim_config = optim
        self.lr = lr
        self.optim_config = optim


@pytest.mark.parametrize(
    "make",
    [
        lambda: attach_optimizers(OwnLr(0.3), BLOCK),
        lambda: OwnLrOfMixin(BLOCK, 0.3, block_first=True),
        lambda: OwnLrOfMixin(BLOCK, 0.3, block_first=False),
    ],
    ids=["attached", "after the block", "before the block"],
)
def test_a_modules_own_lr_stays_its_own_and_the_block_keeps_its(make):
    net = make()
    assert (net.lr, net.optim_config.args["lr"]) == (0.3, 0.05)
    net.lr = 0.4
    assert (net.lr, net.optim_config.args["lr"]) == (0.4, 0.05)
    assert copy.deepcopy(net).lr == 0.4
    del net.lr
    assert net.lr == 0.05


@pytest.mark.parametrize("kind", ["parameter", "buffer", "module"])
def test_an_lr_that_torch_has_is_the_modules_own(kind):
    net = OwnLr(0.3)
    del net.lr
    own = {"parameter": nn.Parameter(torch.ones(1)), "buffer": torch.ones(1), "module": nn.ReLU()}[kind]
    net.register_buffer("lr", own) if kind == "buffer" else setattr(net, "lr", own)
    assert attach_optimizers(net, BLOCK).lr is own


def test_an_lr_of_the_base_is_its_own():
    class Base(pl.LightningModule):
        lr = 0.3

    class Module(OptimMixin, Step, Base): ...

    net = Module()
    net.optim_config = BLOCK
    assert (net.lr, net.optim_config.args["lr"]) == (0.3, 0.05)


@pytest.mark.parametrize("name", ["lr", "learning_rate"])
def test_what_the_lr_finder_finds_goes_into_the_block_beside_an_attribute_of_the_modules_own(name, caplog):
    net, run = OwnLr(0.3), trainer(max_epochs=2)
    if name != "lr":
        net.learning_rate = 0.3
    attach_optimizers(net, BLOCK)
    find = {"num_training": 20, "early_stop_threshold": None, "update_attr": True, "attr_name": name}
    with caplog.at_level("INFO"):
        found = Tuner(run).lr_find(net, loader(64), **find).suggestion()
    assert found not in (None, 0.3)
    assert (getattr(net, name), net.optim_config.args["lr"]) == (found, found)
    assert "is the block's lr from now on" in caplog.text
    run.fit(net, loader())
    assert run.optimizers[0].param_groups[0]["initial_lr"] == found


def test_an_lr_finder_that_is_told_to_set_nothing_sets_nothing():
    net = Net(BLOCK)
    Tuner(trainer(max_epochs=2)).lr_find(net, loader(64), num_training=9, early_stop_threshold=None, update_attr=False)
    assert net.optim_config.args["lr"] == 0.05


def test_an_lr_finder_inside_of_a_fit_is_said_to_come_too_late():
    finder = LearningRateFinder(num_training_steps=20, early_stop_threshold=None)
    with pytest.warns(UserWarning, match="schedules go on from those of the optim block as it was; find the LR before"):
        trainer(max_epochs=1, callbacks=[finder]).fit(Net(BLOCK), loader(64))


# ---------------------------------------------------------------------------------------------- a second fit


def test_a_second_fit_has_a_schedule_for_what_is_left():
    net = Net({"name": "sgd", "lr": 0.1, "sched": {"name": "WarmupAnnealing"}})
    run = trainer(max_epochs=2)
    run.fit(net, loader())  # four steps an epoch
    run.fit_loop.max_epochs = 5
    run.fit(net, loader())
    assert run.lr_scheduler_configs[0].scheduler.arguments["max_steps"] == 12
    assert net.lrs[8:] == pytest.approx([0.1 * (12 - step) / 12 for step in range(12)])


def test_a_resumed_fit_has_the_whole_length(tmp_path):
    net = Net({"name": "sgd", "lr": 0.1, "sched": {"name": "WarmupAnnealing", "max_steps": 20}})
    run = trainer(max_epochs=2)
    run.fit(net, loader())
    run.save_checkpoint(tmp_path / "two.ckpt")
    run.fit_loop.max_epochs = 5
    net = Net({"name": "sgd", "lr": 0.1, "sched": {"name": "WarmupAnnealing"}})
    run.fit(net, loader(), ckpt_path=tmp_path / "two.ckpt")
    assert run.lr_scheduler_configs[0].scheduler.arguments["max_steps"] == 20


def test_max_time_is_the_reason_why_there_is_no_length():
    with pytest.raises(ConfigError, match="the Trainer's max_time ends the run"):
        trainer(max_time={"minutes": 1}).fit(Net(BLOCK), loader())


# ---------------------------------------------------------------------------------------------- thawed layers


class Backbone(OptimMixin, Step, pl.LightningModule):
    def __init__(self, optim) -> None:
        super().__init__()
        self.optim_config = optim
        self.backbone = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))


class Thaw(BaseFinetuning):
    """Thaws `module` in the second epoch."""

    def __init__(self, module: str) -> None:
        super().__init__()
        self.module = module

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            module = pl_module.get_submodule(self.module)
            self.unfreeze_and_add_param_group(module, optimizer, lr=0.01, train_bn=True)


def test_a_thawed_group_under_one_rule_has_its_options(recwarn):
    run = trainer(max_epochs=2, callbacks=[Thaw("backbone.1")])
    run.fit(Backbone(RULES), loader())
    thawed = run.optimizers[0].param_groups[-1]
    assert (len(thawed["params"]), thawed["lr"], thawed["weight_decay"]) == (2, 0.01, 0.5)
    assert not [w for w in recwarn.list if "join" in str(w.message)]


def test_a_thawed_group_under_several_rules_is_said():
    run = trainer(max_epochs=2, callbacks=[Thaw("backbone")])
    with pytest.warns(UserWarning, match="4 parameters join optim as one param group") as caught:
        run.fit(Backbone(RULES), loader())
    (said,) = [str(w.message) for w in caught if "join" in str(w.message)]
    assert "no rule for 'backbone.0.weight'; no rule, no decay for 'backbone.0.bias'; backbone.1.* for" in said
    assert run.optimizers[0].param_groups[-1]["weight_decay"] == 0.01


def test_without_rules_nothing_is_said(recwarn):
    run = trainer(max_epochs=2, callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=1)])
    run.fit(Backbone({"name": "sgd", "lr": 0.1, "weight_decay": 0.01}), loader())
    assert not [w for w in recwarn.list if "join" in str(w.message)]


def test_thawed_groups_are_what_the_block_says():
    net = Backbone(RULES)
    groups = net.thawed_groups(net.backbone.parameters())
    assert [(len(group["params"]), group.get("weight_decay")) for group in groups] == [(1, None), (1, 0.0), (2, 0.5)]


# ---------------------------------------------------------------------------------------------- compiled submodules


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_rules_hold_for_compiled_submodules(compiled):
    net = Backbone({**RULES, "param_groups": [{"match": "backbone.1.weight", "lr": 0.5}], "layer_decay": 0.5})
    if compiled:
        net.backbone = torch.compile(net.backbone, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = trainer(max_epochs=1)
        run.fit(net, loader())
    groups = {group["name"]: (group["lr"], len(group["params"])) for group in run.optimizers[0].param_groups}
    assert groups == {
        "default, no decay": (0.1, 1),
        "default, lr x 0.5": (0.05, 1),
        "default, lr x 0.5, no decay": (0.05, 1),
        "default, lr x 0.25": (0.025, 1),
        "default, lr x 0.25, no decay": (0.025, 1),
        "backbone.1.weight": (0.5, 1),
    }
