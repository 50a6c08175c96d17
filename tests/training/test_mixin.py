"""OptimMixin and attach_optimizers in real, tiny fits."""

import copy
import pickle
from typing import Any

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from tiny_fit import BLOCK, PACKAGES, Net, Step, block, loader, module_of, trainer
from torch import nn

from lightning_novograd.errors import ConfigError
from lightning_novograd.optim.novograd.optimizer import NovoGrad
from lightning_novograd.training.attach import attach_optimizers
from lightning_novograd.training.mixin import OptimMixin
from lightning_novograd.training.packages import check_same_lightning

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")


# ---------------------------------------------------------------------------------------------- where the block is


def test_assigning_a_wrong_block_fails_when_the_module_is_built():
    with pytest.raises(ConfigError, match=r"optim\.lrr: unknown key"):
        Net(block(lrr=1))


class WithHparams(OptimMixin, Step, pl.LightningModule):
    def __init__(self, width: int, optim) -> None:
        super().__init__()
        self.save_hyperparameters()


def test_the_block_may_be_a_hyperparameter():
    assert WithHparams(3, BLOCK).optim_config.args["lr"] == 0.05


def test_no_block_at_all_says_where_it_goes():
    with pytest.raises(ConfigError, match=r"Net has no optim block: assign self.optim_config, or save it as hparams"):
        trainer(max_epochs=1).fit(Net(), loader())


def test_the_mixin_comes_first():
    with pytest.raises(TypeError, match="OptimMixin must come before LightningModule"):

        class Wrong(Step, pl.LightningModule, OptimMixin):
            pass


class KeepsItsOwn(Net):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class AsksForOurs(Net):
    def configure_optimizers(self):
        return super().configure_optimizers()


@pytest.mark.parametrize(("kind", "warned"), [(KeepsItsOwn, True), (AsksForOurs, False), (Net, False)])
def test_a_block_that_nobody_uses_is_said(kind, warned, caplog):
    trainer(max_epochs=1).fit(kind(BLOCK), loader())
    said = f"{kind.__name__}.configure_optimizers does not call super().configure_optimizers()"
    assert (said in caplog.text) is warned


# ---------------------------------------------------------------------------------------------- both packages


@PACKAGES
@pytest.mark.parametrize("attached", [False, True], ids=["mixin", "attached"])
def test_a_fit_follows_the_block(package, attached):
    net = module_of(package, mixin=not attached)
    if attached:
        assert attach_optimizers(net, BLOCK) is net
    else:
        net.optim_config = BLOCK
    run = trainer(package, max_epochs=2)
    run.fit(net, loader())
    assert isinstance(run.optimizers[0], NovoGrad)
    assert net.lrs[0] == pytest.approx(0.05 / 3)
    assert max(net.lrs) == 0.05
    assert len(net.lrs) == 8
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01)  # annealed exactly at the end


@pytest.mark.parametrize(
    ("of_trainer", "of_module"), [(pl, pytorch_lightning), (pytorch_lightning, pl)], ids=["pl.Trainer", "old Trainer"]
)
def test_packages_that_do_not_mix_are_named(of_trainer, of_module):
    run, net = trainer(of_trainer), module_of(of_module)
    with pytest.raises(TypeError) as caught:
        check_same_lightning(run, net)
    message = str(caught.value)
    assert f"Trainer is {of_trainer.__name__}'s and Module is a LightningModule of {of_module.__name__}" in message
    check_same_lightning(run, module_of(of_trainer))


# ---------------------------------------------------------------------------------------------- attach_optimizers


class Foreign(Step, pl.LightningModule):
    """Somebody else's module, with hooks and an optimizer of its own."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.stepped = 0
        vars(self).update(attributes)

    def configure_optimizers(self):
        raise AssertionError("replaced")

    def lr_scheduler_step(self, scheduler, metric):
        self.stepped += 1
        super().lr_scheduler_step(scheduler, metric)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["foreign"] = True


def test_attached_modules_keep_their_class_and_their_hooks(tmp_path):
    net = attach_optimizers(Foreign(), BLOCK)
    assert isinstance(net, Foreign)
    assert (type(net).__name__, type(net).__module__) == ("Foreign", Foreign.__module__)
    run = trainer(max_epochs=1)
    run.fit(net, loader())
    assert net.stepped == 4
    run.save_checkpoint(tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["foreign"]


def test_attaching_again_changes_the_block():
    net = attach_optimizers(attach_optimizers(Foreign(), BLOCK), block(lr=0.5))
    assert net.optim_config.args["lr"] == 0.5
    assert type(net).__mro__.count(OptimMixin) == 1


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_attached_modules_can_be_copied_and_pickled(duplicate):
    net = attach_optimizers(Foreign(), BLOCK)
    twin = duplicate(net)
    assert type(twin) is type(net)
    assert twin.optim_config == net.optim_config
    assert all(map(torch.equal, twin.state_dict().values(), net.state_dict().values()))


@pytest.mark.parametrize(
    ("module", "cfg", "error", "message"),
    [
        (nn.Linear(1, 1), BLOCK, TypeError, "takes a LightningModule, not Linear"),
        (Foreign(), block(nmae=1), ConfigError, "optim.nmae"),
        (Foreign(optim_config={"a": 1}), BLOCK, TypeError, "Foreign has an optim_config of its own"),
    ],
)
def test_attach_refuses(module, cfg, error, message):
    cls = type(module)
    with pytest.raises(error, match=message):
        attach_optimizers(module, cfg)
    assert type(module) is cls


@PACKAGES
@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("frequency", [2, 3, 5])
def test_a_frequency_counts_optimizer_steps_over_epochs_and_accumulation(package, frequency, accumulate):
    """Lightning's own counts batches within the epoch: with 10 of them, accumulation 4 and 3 it would never step."""
    sched = {"name": "ExponentialLR", "gamma": 0.5, "interval": "step", "frequency": frequency}
    net = module_of(package)
    net.optim_config = {"name": "sgd", "lr": 0.1, "sched": sched}
    run = trainer(package, max_epochs=3, accumulate_grad_batches=accumulate)
    run.fit(net, loader(20))
    assert net.lrs == pytest.approx([0.1 * 0.5 ** (step // frequency) for step in range(run.global_step)])
    first = run.global_step
    run.fit_loop.max_epochs = 5
    run.fit(net, loader(20))  # with a schedule of its own
    assert net.lrs[first:] == pytest.approx(
        [0.1 * 0.5 ** (step // frequency) for step in range(run.global_step - first)]
    )
