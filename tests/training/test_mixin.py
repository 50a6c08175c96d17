"""OptimMixin and attach_optimizers in real, tiny fits."""

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from omegaconf import OmegaConf
from tiny_fit import Net, Step, loader, trainer
from torch import nn

from lightning_novograd.errors import ConfigError
from lightning_novograd.optim.novograd.optimizer import NovoGrad
from lightning_novograd.training.mixin import OptimMixin, attach_optimizers, check_same_lightning

BLOCK = {
    "name": "novograd",
    "lr": 0.05,
    "betas": [0.95, 0.25],
    "sched": {"name": "cosine", "warmup_steps": 2, "min_lr": 0.01},
}
PACKAGES = pytest.mark.parametrize("package", [pl, pytorch_lightning], ids=["lightning.pytorch", "pytorch_lightning"])
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")


def block(**changes):
    return {**BLOCK, **changes}


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


# ---------------------------------------------------------------------------------------------- both packages


def module_of(package, name="Module", mixin=True):
    return type(name, (*((OptimMixin,) if mixin else ()), Step, package.LightningModule), {})()


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


# ---------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("make", [lambda cfg: WithHparams(3, cfg.optim), lambda cfg: Net(cfg.optim)])
def test_checkpoints_of_omegaconf_runs_are_plain_data(make, tmp_path):
    cfg = OmegaConf.create({"peak": 0.05, "optim": block(lr="${peak}", larc=True, no_decay=["bias"])})
    run = trainer(max_epochs=1)
    run.fit(make(cfg), loader())
    run.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["betas"] == (0.95, 0.25)
    if "hyper_parameters" in saved:
        assert saved["hyper_parameters"] == {"width": 3, "optim": block(lr=0.05, larc=True, no_decay=["bias"])}
        loaded = WithHparams.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
        assert loaded.optim_config == make(cfg).optim_config


CONFIG = {"peak": 0.05, "optim": block(lr="${peak}"), "model": {"width": 3, "kernels": [1, 2]}, "root": Path("data")}
PLAIN = {"peak": 0.05, "optim": block(lr=0.05), "model": {"width": 3, "kernels": [1, 2]}, "root": "data"}


class TheConfigItself(OptimMixin, Step, pl.LightningModule):
    def __init__(self, cfg) -> None:
        super().__init__()
        self.save_hyperparameters(cfg)
        self.width = cfg.model.width


class TheConfigUnderAnotherName(OptimMixin, Step, pl.LightningModule):
    def __init__(self, optim, model, peak=None, root=None) -> None:
        super().__init__()
        self.save_hyperparameters(OmegaConf.create({"optim": optim, "model": model}))
        self.width = model.width


class TheConfigAmongOthers(OptimMixin, Step, pl.LightningModule):
    def __init__(self, cfg, depth=1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.optim_config = cfg.optim
        self.width, self.depth = cfg.model.width, depth


class Nested(OptimMixin, Step, pl.LightningModule):
    def __init__(self, optim, parts) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.width = parts[0]["model"]["width"]


MODULES = {
    "save_hyperparameters(cfg)": (TheConfigItself, lambda cfg: (cfg,), PLAIN),
    "no argument's name": (
        TheConfigUnderAnotherName,
        lambda cfg: (OmegaConf.create(PLAIN["optim"]), cfg.model),
        {"optim": PLAIN["optim"], "model": PLAIN["model"]},
    ),
    "save_hyperparameters()": (TheConfigAmongOthers, lambda cfg: (cfg,), {"cfg": PLAIN, "depth": 1}),
    "nested": (
        Nested,
        lambda cfg: (cfg.optim, [{"model": cfg.model}]),
        {"optim": PLAIN["optim"], "parts": [{"model": PLAIN["model"]}]},
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_omegaconf_hyperparameters_are_plain_in_a_checkpoint_and_omegaconf_again_when_loaded(name, tmp_path):
    cls, arguments, plain = MODULES[name]
    net, path = cls(*arguments(OmegaConf.create(CONFIG))), tmp_path / "last.ckpt"
    run = trainer(max_epochs=1)
    run.fit(net, loader())
    run.save_checkpoint(path)
    assert torch.load(path, weights_only=True)["hyper_parameters"] == plain

    for loaded in (cls.load_from_checkpoint(path), cls.load_from_checkpoint(io.BytesIO(path.read_bytes()))):
        assert (loaded.width, loaded.optim_config) == (3, net.optim_config)
        assert torch.equal(loaded.layer.weight, net.layer.weight)
    again = cls(*arguments(OmegaConf.create(CONFIG)))
    trainer(max_epochs=1).fit(again, loader(), ckpt_path=path)  # loads with weights_only=True, and has no steps left


class ForeignConfig(Step, pl.LightningModule):
    def __init__(self, cfg, optim=None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.width = cfg.model.width


def test_a_checkpoint_of_an_attached_module_loads_with_its_own_class(tmp_path):
    net = attach_optimizers(ForeignConfig(OmegaConf.create(CONFIG), OmegaConf.create(BLOCK)), BLOCK)
    run = trainer(max_epochs=1)
    run.fit(net, loader())
    run.save_checkpoint(tmp_path / "last.ckpt")
    assert ForeignConfig.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=False).width == 3
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)["hyper_parameters"]
    assert saved == {"cfg": OmegaConf.create(CONFIG), "optim": BLOCK}
    assert type(saved["optim"]) is dict


def test_arguments_of_load_from_checkpoint_come_first(tmp_path):
    cfg = OmegaConf.create(CONFIG)
    for net in (TheConfigItself(cfg), TheConfigAmongOthers(cfg)):
        run = trainer(max_steps=2)
        run.fit(net, loader())
        run.save_checkpoint(tmp_path / f"{type(net).__name__}.ckpt")
    changed = TheConfigItself.load_from_checkpoint(
        tmp_path / "TheConfigItself.ckpt", model=OmegaConf.create({"width": 5})
    )
    assert (changed.width, changed.hparams.peak) == (5, 0.05)
    other = OmegaConf.create({**CONFIG, "model": {"width": 7}})
    for cls in (TheConfigItself, TheConfigAmongOthers):
        assert cls.load_from_checkpoint(tmp_path / f"{cls.__name__}.ckpt", cfg=other).width == 7
    assert TheConfigAmongOthers.load_from_checkpoint(tmp_path / "TheConfigAmongOthers.ckpt", depth=2).depth == 2


@PACKAGES
def test_a_data_module_and_what_cannot_be_resolved_do_not_spoil_a_checkpoint(package, tmp_path):
    class Data(package.LightningDataModule):
        def __init__(self, cfg):
            super().__init__()
            self.save_hyperparameters(cfg)

        def train_dataloader(self):
            return loader()

    net = module_of(package)
    net.optim_config = BLOCK
    net.save_hyperparameters({"cfg": OmegaConf.create({"missing": "???", "elsewhere": "${nowhere:x}"})})
    run = trainer(package, max_steps=2)
    run.fit(net, Data(OmegaConf.create({"batch": 3, "twice": "${batch}"})))
    run.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["datamodule_hyper_parameters"] == {"batch": 3, "twice": 3}
    assert saved["hyper_parameters"] == {"cfg": {"missing": "???", "elsewhere": "${nowhere:x}"}}


def test_an_instance_does_not_load_a_checkpoint():
    with pytest.raises(TypeError, match="load_from_checkpoint returns a new module: call it on the class"):
        Net(BLOCK).load_from_checkpoint("last.ckpt")


# ---------------------------------------------------------------------------------------------- clipping


class Clipped(Net):
    """Gradients far too large; notes the first step's before and after clipping."""

    unclipped = clipped = None

    def training_step(self, batch, batch_idx):
        return 1e3 * super().training_step(batch, batch_idx)

    def on_after_backward(self):
        self.unclipped = self.unclipped or [p.grad.clone() for p in self.layer.parameters()]

    def on_before_zero_grad(self, optimizer):
        if self.layer.weight.grad is not None:
            self.clipped = self.clipped or [p.grad.clone() for p in self.layer.parameters()]


def norm(tensors):
    return torch.linalg.vector_norm(torch.cat([t.flatten() for t in tensors]))


@pytest.mark.parametrize(
    ("settings", "trainer_settings"),
    [
        ({"grad_clip_norm": 0.5}, {}),
        ({"grad_clip_norm": 0.5, "larc": {"allow_grad_clip": True}}, {}),
        ({}, {"gradient_clip_val": 0.5}),
        ({"larc": {"allow_grad_clip": True}}, {"gradient_clip_val": 0.5}),
    ],
    ids=["block", "block with LARC", "trainer", "trainer with LARC"],
)
def test_norm_clipping(settings, trainer_settings):
    net = Clipped({"name": "sgd", "lr": 0.1, **settings})
    trainer(max_steps=2, **trainer_settings).fit(net, loader())
    assert norm(net.unclipped) > 1
    assert norm(net.clipped) == pytest.approx(0.5)


def test_value_clipping():
    net = Clipped({"name": "sgd", "lr": 0.1, "grad_clip_value": 0.25})
    trainer(max_steps=2).fit(net, loader())
    assert max(g.abs().max() for g in net.unclipped) > 1
    assert max(g.abs().max() for g in net.clipped) == 0.25


def test_no_clipping_unless_asked():
    net = Clipped({"name": "sgd", "lr": 0.1})
    trainer(max_steps=2).fit(net, loader())
    assert norm(net.clipped) == norm(net.unclipped) > 1


@pytest.mark.parametrize(
    ("settings", "path", "problem"),
    [
        ({"grad_clip_norm": 1.0}, "optim.grad_clip_norm", r"the Trainer clips too \(gradient_clip_val=2.0\)"),
        ({"larc": True}, "optim.larc", "larc.allow_grad_clip: true allows both"),
    ],
)
def test_clipping_twice_or_with_larc_is_refused(settings, path, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        trainer(max_steps=1, gradient_clip_val=2.0).fit(Net({"name": "sgd", **settings}), loader())
    assert caught.value.path == path


def test_clipping_under_manual_optimization_is_refused_not_ignored():
    net = Net({"name": "sgd", "grad_clip_norm": 1.0})
    net.automatic_optimization = False
    with pytest.raises(ConfigError, match=r"call self\.clip_gradients"):
        trainer(max_steps=1).fit(net, loader())


# ---------------------------------------------------------------------------------------------- skipped steps


class Overflows(Net):
    """Infinite gradients in some batches, as fp16 has them."""

    overflow_at = (1, 3, 4)

    def on_after_backward(self):
        if len(self.seen) - 1 in self.overflow_at:
            self.layer.weight.grad.fill_(float("inf"))


def mixed_precision():
    from lightning.pytorch.plugins import MixedPrecision

    return MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu", init_scale=4.0))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"name": "novograd", "foreach": True}, id="novograd"),
        pytest.param({"name": "adamw"}, id="adamw"),
        pytest.param({"name": "adamw", "fused": True}, id="fused adamw"),
        pytest.param({"name": "sgd", "larc": True}, id="larc"),
    ],
)
def test_a_step_that_the_grad_scaler_skipped_does_not_advance_the_schedule(settings):
    sched = {"name": "WarmupAnnealing", "warmup_steps": 3, "max_steps": 20}
    net = Overflows({"lr": 0.1, "sched": sched, **settings})
    run = trainer(max_steps=8, plugins=[mixed_precision()])
    run.fit(net, loader(20))
    scheduler = run.lr_scheduler_configs[0].scheduler
    assert scheduler.last_epoch == 8 - len(Overflows.overflow_at)
    expected = [0, 1, 1, 2, 2, 2, 3, 4]  # the schedule's step that each optimizer step sees
    assert net.lrs == pytest.approx([scheduler.lr_at(step, 0.1) for step in expected])


def test_without_a_scaler_every_step_advances_the_schedule():
    """Strategies may hide the optimizer from our hook; only a scaler can skip."""
    net = Net({"name": "sgd", "sched": {"name": "cosine"}})
    run = trainer(max_steps=4)
    net.on_train_start = lambda: setattr(net._step_count, "advanced", lambda: False)
    run.fit(net, loader())
    assert run.lr_scheduler_configs[0].scheduler.last_epoch == 4


@pytest.mark.parametrize(
    "sched",
    [
        {"name": "ReduceLROnPlateau", "monitor": "loss", "patience": 0, "threshold": 1.0},
        {"name": "StepLR", "step_size": 1},
        {"name": "StepLR", "step_size": 4, "interval": "step"},
    ],
    ids=["plateau", "per epoch", "per step"],
)
def test_epoch_schedules_step_once_per_epoch(sched):
    net = Net({"name": "sgd", "lr": 0.1, "sched": sched})
    trainer(max_epochs=3).fit(net, loader())
    assert net.lrs == pytest.approx([0.1] * 4 + [0.01] * 4 + [0.001] * 4)


def test_accumulation_steps_the_schedule_once_per_optimizer_step():
    net = Net(BLOCK)
    run = trainer(max_epochs=2, accumulate_grad_batches=3)
    run.fit(net, loader())
    assert run.lr_scheduler_configs[0].scheduler.last_epoch == run.global_step == 4
