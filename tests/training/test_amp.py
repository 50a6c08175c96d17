"""A step that the GradScaler skipped does not advance the schedule."""

from itertools import pairwise

import pytest
import torch
from tiny_fit import BLOCK, Net, loader, trainer

from lightning_novograd.errors import ConfigError
from lightning_novograd.training.averaging.ema import averaging_of

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")


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


class SkipsFirstEpoch(Overflows):
    overflow_at = (0, 1, 2, 3)


@pytest.mark.parametrize("sched", [{"name": "StepLR", "step_size": 1}, {"name": "WarmupAnnealing", "max_epochs": 4}])
def test_an_epoch_in_which_every_step_was_skipped_is_an_epoch(sched):
    """A schedule that counts epochs goes on: only one that counts steps waits for them."""
    net = SkipsFirstEpoch({"name": "sgd", "lr": 0.1, "sched": {**sched, "interval": "epoch"}})
    run = trainer(max_epochs=3, plugins=[mixed_precision()])
    run.fit(net, loader(8))
    scheduler = run.lr_scheduler_configs[0].scheduler
    assert scheduler.last_epoch == 3
    assert len(set(net.lrs[:4])) == len(set(net.lrs[4:8])) == 1
    assert net.lrs[0] != net.lrs[4] != net.lrs[8]


class SkipsFirstSteps(Overflows):
    overflow_at = (0, 1)


def test_the_schedule_waits_for_the_first_step_too():
    """As fp16 begins: the scale is too large at first."""
    sched = {"name": "WarmupAnnealing", "warmup_steps": 3, "max_steps": 20}
    net = SkipsFirstSteps({"name": "novograd", "lr": 0.1, "sched": sched})
    run = trainer(max_steps=5, plugins=[mixed_precision()])
    run.fit(net, loader(20))
    scheduler = run.lr_scheduler_configs[0].scheduler
    assert scheduler.last_epoch == 3
    assert net.lrs == pytest.approx([scheduler.lr_at(step, 0.1) for step in (0, 0, 0, 1, 2)])


# ------------------------------------------------------------------------------------------- weights of half precision


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "adagrad"])
def test_weights_of_float16_need_a_larger_eps(name):
    def fit(**changes):
        module = Net({"name": name, "lr": 1e-3, **changes})
        trainer(precision="16-true", max_steps=6).fit(module, loader(size=12))
        return module.layer.weight

    with pytest.raises(ConfigError, match=r"^optim\.eps: 1e-\d+ is 0 in float16; write at least 0\.0001"):
        fit()
    weight = fit(eps=1e-4)
    assert weight.dtype is torch.float16
    assert weight.isfinite().all()


@pytest.mark.parametrize("larc", [None, True], ids=["bare", "larc"])
def test_novograd_steps_weights_of_float16_as_they_are(larc):
    module = Net({"name": "novograd", "lr": 0.01, "larc": larc})
    with torch.no_grad():
        module.layer.weight.zero_()
        module.layer.bias.zero_()  # so that the first gradients are zero
    start = module.layer.weight.clone()
    trainer(precision="16-true", max_steps=1).fit(module, loader(size=2))
    assert torch.equal(module.layer.weight.float(), start)
    with torch.no_grad():
        module.layer.bias.fill_(1e-3)
    trainer(precision="16-true", max_steps=6).fit(module, loader(size=12))
    assert module.layer.weight.dtype is torch.float16
    assert module.layer.weight.isfinite().all()
    assert not torch.equal(module.layer.weight.float(), start)


# ---------------------------------------------------------------------------------------------------- averaged weights


def averaged_in(net, **options):
    """Batches at whose end the average has been updated."""
    counts = [0]
    net.on_train_batch_end = lambda *_: counts.append(int(averaging_of(run)._average_model.n_averaged))
    run = trainer(max_epochs=1, **options)
    run.fit(net, loader(16))
    return [batch for batch, (before, after) in enumerate(pairwise(counts)) if after > before]


@pytest.mark.parametrize("settings", [{"name": "adamw"}, {"name": "adamw", "fused": True}], ids=["plain", "fused"])
def test_a_step_that_the_grad_scaler_skipped_is_not_averaged(settings):
    net = Overflows({"lr": 0.1, "ema": 0.5, **settings})
    assert averaged_in(net, plugins=[mixed_precision()]) == [0, 2, 5, 6, 7]


class LeavesOut(Net):
    """Makes no optimizer step of some batches."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        if batch_idx in (1, 5):
            optimizer_closure()
        else:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)


@pytest.mark.parametrize(("accumulate", "updated"), [(1, [0, 2, 3, 4, 6, 7]), (2, [3, 7])])
def test_a_step_that_the_module_leaves_out_is_not_averaged(accumulate, updated):
    net = LeavesOut({"name": "sgd", "lr": 0.1, "ema": 0.5})
    assert averaged_in(net, accumulate_grad_batches=accumulate) == updated
