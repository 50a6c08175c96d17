"""The optim block's gradient clipping, and what it does not go with."""

from typing import Any

import pytest
import torch
from tiny_fit import Net, loader, trainer

from lightning_novograd.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")


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


FUSED = ["novograd", "sgd", "adam", "adamw", "adagrad"]
CLIPS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"grad_clip_norm": 0.5}, {}),
    ({"grad_clip_value": 0.01}, {}),
    ({}, {"gradient_clip_val": 0.5}),
    ({}, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
]


class Overflowing(Clipped):
    """Two of its batches overflow; the other gradients are small enough for fp16."""

    training_step = Net.training_step

    def on_after_backward(self):
        super().on_after_backward()
        if len(self.seen) in (2, 4):
            self.layer.weight.grad[0, 0] = torch.inf


def fit_in_fp16(settings, **trainer_settings):
    from lightning.pytorch.plugins import MixedPrecision

    torch.manual_seed(0)
    net = Overflowing({"lr": 0.05, "sched": {"name": "cosine", "max_steps": 8, "warmup_steps": 2}, **settings})
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    run = trainer(max_steps=6, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)], **trainer_settings)
    run.fit(net, loader(20))
    return net, run.lr_scheduler_configs[0].scheduler.last_epoch, scaler.get_scale()


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*before")
@pytest.mark.parametrize("larc", [None, {"allow_grad_clip": True, "trust_coefficient": 0.5}], ids=["bare", "larc"])
@pytest.mark.parametrize(("settings", "trainer_settings"), CLIPS, ids=str)
@pytest.mark.parametrize("name", FUSED)
def test_fp16_with_a_fused_optimizer_clips_as_with_any_other(name, settings, trainer_settings, larc):
    block = {"name": name, "larc": larc, **settings}
    if name == "adagrad":
        block["larc"] = larc and {**larc, "target": "update"}
    plain, plain_steps, plain_scale = fit_in_fp16({**block, "fused": False}, **trainer_settings)
    fused, steps, scale = fit_in_fp16({**block, "fused": True}, **trainer_settings)
    assert (steps, scale) == (plain_steps, plain_scale) == (4, 4.0)
    torch.testing.assert_close(fused.clipped, plain.clipped, rtol=0, atol=0)
    assert fused.lrs == plain.lrs
    for ours, theirs in zip(fused.layer.parameters(), plain.layer.parameters(), strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FUSED)
def test_without_clipping_a_fused_optimizer_unscales_by_itself(name):
    net, steps, _ = fit_in_fp16({"name": name, "fused": True})
    assert steps == 4
    fused_adagrad = torch.optim.Adagrad(Net({"name": "sgd"}).parameters(), fused=True)
    unscales = name != "adagrad" or hasattr(fused_adagrad, "_step_supports_amp_scaling")  # not that of torch 2.10
    assert getattr(net.trainer.optimizers[0], "_step_supports_amp_scaling", False) == unscales


def test_clipping_under_manual_optimization_is_refused_not_ignored():
    net = Net({"name": "sgd", "grad_clip_norm": 1.0})
    net.automatic_optimization = False
    with pytest.raises(ConfigError, match=r"call self\.clip_gradients"):
        trainer(max_steps=1).fit(net, loader())


@pytest.mark.parametrize("off", [0, 0.0, None])
def test_a_trainer_whose_clipping_is_off_may_have_larc(off):
    net = Clipped({"name": "sgd", "lr": 0.1, "larc": True})
    trainer(max_steps=2, gradient_clip_val=off).fit(net, loader())
    assert norm(net.clipped) == norm(net.unclipped) > 1


@pytest.mark.parametrize("key", ["grad_clip_norm", "grad_clip_value"])
@pytest.mark.parametrize("off", [0, 0.0])
def test_a_trainer_whose_clipping_is_off_beside_the_blocks_is_refused_before_the_run(off, key):
    """Lightning would refuse it at the first step."""
    with pytest.raises(ConfigError, match=f"0.5, but .*gradient_clip_val={off}.*; leave it out") as caught:
        trainer(max_steps=2, gradient_clip_val=off).fit(Net({"name": "sgd", "lr": 0.1, key: 0.5}), loader())
    assert caught.value.path == f"optim.{key}"
