"""Manual optimization: one optimizer or several, each with a schedule of the right length."""

import warnings

import lightning.pytorch as pl
import pytest
import torch
from tiny_fit import Step, loader, trainer
from torch import nn

from lightning_novograd import build_optimizers
from lightning_novograd.errors import ConfigError
from lightning_novograd.training.mixin import OptimMixin

SCHED = {"name": "WarmupAnnealing"}  # linear to 0
GAN = {
    "generator": {"name": "adam", "lr": 0.1, "sched": SCHED},
    "discriminator": {"name": "sgd", "lr": 0.2, "sched": {**SCHED, "steps_per_batch": 2}},
}


class Manual(OptimMixin, Step, pl.LightningModule):
    """Steps `steps` times for each batch, or every `every` batches."""

    def __init__(self, optim, steps: int = 1, every: int = 1, steps_schedule: bool = True) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.optim_config = optim
        self.steps, self.every, self.steps_schedule = steps, every, steps_schedule

    def training_step(self, batch, batch_idx):
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        self.batches = getattr(self, "batches", 0) + 1
        for _ in range(self.steps if self.batches % self.every == 0 else 0):
            optimizer.zero_grad()
            self.manual_backward(self.layer(batch).square().mean())
            optimizer.step()
            if self.steps_schedule:
                scheduler.step()


class Gan(OptimMixin, pl.LightningModule):
    def __init__(self, optim=GAN) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.optim_config = optim
        self.generator, self.discriminator = nn.Linear(3, 3), nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        optimizers, schedulers = self.optimizers(), self.lr_schedulers()
        for optimizer, scheduler, steps in zip(optimizers, schedulers, (1, 2), strict=True):
            for _ in range(steps):
                optimizer.zero_grad()
                self.manual_backward(self.discriminator(self.generator(batch)).square().mean())
                optimizer.step()
                scheduler.step()


def lengths(run: pl.Trainer) -> list[int]:
    return [config.scheduler.arguments["max_steps"] for config in run.lr_scheduler_configs]


def block(**sched):
    return {"name": "sgd", "lr": 0.1, "sched": {**SCHED, **sched}}


@pytest.mark.parametrize(
    ("steps", "every", "per_batch"), [(1, 1, None), (1, 1, 1), (2, 1, 2), (1, 4, 0.25), (1, 3, 1 / 3), (3, 2, 1.5)]
)
@pytest.mark.parametrize("settings", [{"max_epochs": 3}, {"max_epochs": 9, "max_steps": 6}], ids=["epochs", "steps"])
def test_the_schedule_is_as_long_as_the_steps_that_are_made(steps, every, per_batch, settings, recwarn):
    net = Manual(block(steps_per_batch=per_batch), steps, every)
    run = trainer(**settings)
    run.fit(net, loader())  # four batches
    (scheduler,) = [config.scheduler for config in run.lr_scheduler_configs]
    assert abs(scheduler.last_epoch - lengths(run)[0]) < steps  # the Trainer stops after a batch
    assert not [w for w in recwarn.list if "optim.sched" in str(w.message)]


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (lambda: Manual(block(), steps=3), "was stepped 12 times in an epoch of 4 batches, and its length supposes 4"),
        (lambda: Manual(block(), every=4), "was stepped 1 times in an epoch of 4 batches, and its length supposes 4"),
        (lambda: Manual(block(), steps_schedule=False), "was never stepped in an epoch of 4 batches"),
        (lambda: Manual(block(max_steps=9), steps_schedule=False), "was never stepped in an epoch of 4 batches"),
    ],
    ids=["often", "seldom", "never", "never, of its own length"],
)
def test_another_pace_is_said_at_the_end_of_the_first_epoch(module, said):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(max_epochs=3).fit(module(), loader())
    (warning,) = [str(w.message) for w in caught if "batches" in str(w.message) and "optim.sched" in str(w.message)]
    assert said in warning


def said_of_the_pace(net, batches, **settings):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = trainer(**settings)
        run.fit(net, loader(2 * batches))
    return [str(w.message) for w in caught if "batches" in str(w.message) and "optim.sched" in str(w.message)]


class Restarts(Manual):
    """Begins to count batches anew in each epoch."""

    def training_step(self, batch, batch_idx):
        self.batches = batch_idx + self.every - 1
        super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("net", "batches", "epochs", "said"),
    [
        (
            lambda: Manual(block(), steps=2),
            1,
            20,
            "was stepped 2 times in an epoch of 1 batches, and its length supposes",
        ),
        (
            lambda: Manual(block(), every=2),
            1,
            20,
            "was stepped 1 times in 2 epochs of 2 batches in all, and its length",
        ),
        (
            lambda: Restarts(block(steps_per_batch=0.25), every=4),
            5,
            2,
            "was stepped 4 times in 2 epochs of 10 batches in",
        ),
        (
            lambda: Restarts(block(steps_per_batch=0.1), every=10),
            2,
            9,
            "was stepped 2 times in 2 epochs of 4 batches in",
        ),
        (
            lambda: Manual(block(steps_per_batch=0.5), steps_schedule=False),
            1,
            9,
            "was never stepped in 4 epochs of 4 ba",
        ),
        (lambda: Manual(block(steps_per_batch=0.25), every=4), 5, 8, None),
        (lambda: Manual(block(steps_per_batch=1 / 3), every=3), 1, 9, None),
        (lambda: Manual(block(steps_per_batch=0.33), every=3), 40, 3, None),
        (lambda: Manual(block(steps_per_batch=1.5), 3, every=2), 3, 4, None),
    ],
    ids=["twice", "every other", "rhythm", "far apart", "never", "own count", "a batch an epoch", "rounded", "bursts"],
)
def test_short_epochs_are_counted_together(net, batches, epochs, said):
    warned = said_of_the_pace(net(), batches, max_epochs=epochs)
    if said is None:
        assert not warned
    else:
        (warning,) = warned
        assert said in warning


def test_no_hook_without_super_turns_the_warning_off():
    class NoSuper(Manual):
        def on_train_start(self): ...

        def on_train_epoch_end(self): ...

    (said,) = said_of_the_pace(NoSuper(block(), steps=3), 4, max_epochs=1)
    assert "was stepped 12 times in an epoch of 4 batches" in said


def test_the_pace_of_a_second_fit_and_of_a_resumed_one_is_its_own(tmp_path):
    net, run = Manual(block()), trainer(max_epochs=1)
    run.fit(net, loader())
    run.save_checkpoint(tmp_path / "four.ckpt")
    net.steps, run.fit_loop.max_epochs = 3, 2
    with pytest.warns(UserWarning, match="was stepped 12 times in an epoch of 4 batches, and its length supposes 4"):
        run.fit(net, loader())
    resumed = trainer(max_epochs=2)
    with pytest.warns(UserWarning, match="was stepped 12 times in an epoch of 4 batches, and its length supposes 4"):
        resumed.fit(net, loader(), ckpt_path=tmp_path / "four.ckpt")
    assert [type(callback).__name__ for callback in run.callbacks].count("PaceWatch") == 1


def test_who_leaves_a_step_out_is_not_warned():
    class Skips(Manual):
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step or batch_idx:
                super().training_step(batch, batch_idx)

    assert not said_of_the_pace(Skips(block()), 8, max_epochs=3)


def test_the_pace_that_is_advised_is_right():
    with pytest.warns(UserWarning, match=r"say optim\.sched\.steps_per_batch: 3, or its max_steps"):
        trainer(max_epochs=1).fit(Manual(block(), steps=3), loader())


def test_a_schedule_whose_length_the_block_says_may_have_any_pace(recwarn):
    trainer(max_epochs=1).fit(Manual(block(max_steps=12), steps=3), loader())
    assert not [w for w in recwarn.list if "batches" in str(w.message) and "optim.sched" in str(w.message)]


def test_a_pace_is_for_manual_optimization():
    net = Manual(block(steps_per_batch=2))
    net.automatic_optimization = True
    with pytest.raises(ConfigError, match="2, but Lightning steps the optimizer") as caught:
        trainer(max_epochs=1).fit(net, loader())
    assert caught.value.path == "optim.sched.steps_per_batch"


# ---------------------------------------------------------------------------------------------- several optimizers


@pytest.mark.parametrize("settings", [{"max_epochs": 3}, {"max_steps": 36}], ids=["epochs", "steps of both"])
def test_each_optimizer_has_a_schedule_of_its_own_length(settings, recwarn):
    net, run = Gan(), trainer(**settings)
    run.fit(net, loader())
    assert lengths(run) == [12, 24]
    assert [config.scheduler.last_epoch for config in run.lr_scheduler_configs] == [12, 24]
    assert [type(optimizer).__name__ for optimizer in run.optimizers] == ["Adam", "SGD"]
    for optimizer, module in zip(run.optimizers, (net.generator, net.discriminator), strict=True):
        assert list(map(id, optimizer.param_groups[0]["params"])) == list(map(id, module.parameters()))
    assert not [w for w in recwarn.list if "optim." in str(w.message)]


def test_several_optimizers_go_on_where_they_were(tmp_path):
    whole = trainer(max_epochs=4)
    torch.manual_seed(0)
    net = Gan()
    start = {name: value.clone() for name, value in net.state_dict().items()}
    whole.fit(net, loader())
    first = trainer(max_epochs=2)
    half = Gan()
    half.load_state_dict(start)
    half.optim_config = {
        name: {**b, "sched": {**b["sched"], "max_steps": n}} for (name, b), n in zip(GAN.items(), (16, 32), strict=True)
    }
    first.fit(half, loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    rest, resumed = trainer(max_epochs=4), Gan()
    rest.fit(resumed, loader(), ckpt_path=tmp_path / "half.ckpt")
    assert lengths(rest) == [16, 32]
    torch.testing.assert_close(list(resumed.parameters()), list(net.parameters()))


def test_other_optimizers_in_the_checkpoint_are_refused_by_path(tmp_path):
    run = trainer(max_epochs=1)
    run.fit(Gan(), loader())
    run.save_checkpoint(tmp_path / "gan.ckpt")
    other = Gan({**GAN, "discriminator": {"name": "rmsprop"}})
    with pytest.raises(ConfigError, match="RMSprop cannot go on from the state of SGD") as caught:
        trainer(max_epochs=2).fit(other, loader(), ckpt_path=tmp_path / "gan.ckpt")
    assert caught.value.path == "optim.discriminator.name"


@pytest.mark.parametrize(
    ("optim", "path", "problem"),
    [
        ({**GAN, "critic": {"name": "sgd"}}, "optim.critic.module", "Gan has no submodule 'critic'"),
        ({**GAN, "generator": {"name": "sdg"}}, "optim.generator.name", "did you mean 'SGD'?"),
        (
            {**GAN, "all": {"name": "sgd", "module": "generator"}},
            "optim.all.module",
            "'generator.weight' is optimized by optim.generator already",
        ),
        ({"generator": {"lr": 1.0}}, "optim.generator.name", "missing; which optimizer?"),
        ({"sched": {"name": "cosine"}}, "optim.name", "missing; which optimizer?"),
    ],
)
def test_mistakes_in_one_of_several_blocks_are_named(optim, path, problem):
    with pytest.raises(ConfigError) as caught:
        build_optimizers(optim, Gan(), max_steps=10)
    assert caught.value.path == path
    assert problem in caught.value.problem


def test_several_optimizers_need_manual_optimization():
    net = Gan()
    net.automatic_optimization = True
    net.trainer = trainer(max_epochs=1)
    with pytest.raises(ConfigError, match="several optimizers are stepped by the module itself"):
        net.configure_optimizers()


def test_parameters_that_no_optimizer_takes_are_said(caplog):
    built = build_optimizers({"generator": GAN["generator"]}, Gan(), max_steps=10)
    assert built.keys() == {"generator"}
    assert "no optimizer takes 2 parameters: discriminator.weight, discriminator.bias" in caplog.text


def test_a_block_may_be_of_a_part_of_the_model():
    net = Gan()
    built = build_optimizers({"name": "sgd", "module": "discriminator", "no_decay": "bias"}, net)
    groups = built["optimizer"].param_groups
    assert [id(p) for group in groups for p in group["params"]] == [*map(id, net.discriminator.parameters())]


def test_several_blocks_have_no_single_lr():
    assert not hasattr(Gan(), "lr")
    assert Gan().optim_config.keys() == GAN.keys()
