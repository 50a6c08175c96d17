"""What drives an optimizer drives LARC: LR schedulers, closures, Lightning, gradient scalers, hooks."""

import copy
import warnings

import lightning.pytorch as pl
import pytest
import torch
from optim.larc.larc_cases import INNER, SGD, assert_same, assert_same_state, every_inner, make_params, run, set_grads
from torch.optim import lr_scheduler

from lightning_novograd.optim.larc import LARC

pytestmark = pytest.mark.usefixtures("kernels")  # each test with and without the C++ kernels


# --- schedulers, closures, scalers -----------------------------------------------------------------------------------

SCHEDULERS = {
    "step": lambda o: lr_scheduler.StepLR(o, 2),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.5**step),
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=10),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=10),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[2]
    ),
}


@pytest.mark.parametrize("attached_to", ["wrapper", "wrapped"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_torch_schedulers_drive_it(scheduler, attached_to):
    lrs = []
    for wrap in (True, False):
        params = make_params()
        bare = SGD(params, lr=0.1, momentum=0.9)
        optimizer = LARC(bare) if wrap else bare
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # "lr_scheduler.step() before optimizer.step()"
            warnings.filterwarnings("ignore", message=".*epoch parameter in `scheduler.step")
            sched = SCHEDULERS[scheduler](bare if attached_to == "wrapped" else optimizer)
            lrs.append([])
            for step in range(5):
                run(optimizer, params, 1, first=step)
                sched.step()
                lrs[-1].append(optimizer.param_groups[0]["lr"])
    assert lrs[0] == lrs[1]
    assert len(set(lrs[0])) > 1


def test_plateau_scheduler_drives_it():
    larc = LARC(SGD(make_params(), lr=0.1))
    sched = lr_scheduler.ReduceLROnPlateau(larc, patience=0)
    for _ in range(3):
        sched.step(1.0)
    assert larc.param_groups[0]["lr"] < 0.1


@every_inner
def test_the_closure_runs_once_with_gradients_enabled_and_before_any_norm(inner):
    params, others = make_params(), make_params()
    larc, other = (LARC(INNER[inner](p), trust_coefficient=0.01) for p in (params, others))
    calls = []

    def closure():
        # as Lightning's: backward runs here; what p.grad was before is stale
        calls.append(torch.is_grad_enabled())
        larc.zero_grad()
        loss = sum((p * (len(calls) + i)).square().sum() for i, p in enumerate(params))
        loss.backward()
        return loss

    for step in range(3):
        set_grads(params, step, scale=1e6)
        loss = larc.step(closure)
        expected = sum((p * (len(calls) + i)).square().sum() for i, p in enumerate(others))
        other.zero_grad()
        expected.backward()
        assert other.step() is None
        torch.testing.assert_close(loss, expected, rtol=0, atol=0)
        assert_same(params, others)
    assert calls == [True] * 3


class Regression(pl.LightningModule):
    def __init__(self, wrap):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.wrap = wrap

    def training_step(self, batch, batch_idx):
        x, y = batch
        return torch.nn.functional.mse_loss(self.layer(x), y)

    def configure_optimizers(self):
        optimizer = self.wrap(SGD(self.parameters(), lr=0.5, momentum=0.9, weight_decay=0.01))
        return {"optimizer": optimizer, "lr_scheduler": lr_scheduler.ExponentialLR(optimizer, 0.9)}


def test_lightning_trains_with_it_as_a_plain_loop_does():
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(4, 3, generator=generator), torch.randn(4, 1, generator=generator)) for _ in range(8)]
    torch.manual_seed(0)
    module = Regression(lambda optimizer: LARC(optimizer, trust_coefficient=0.01))
    model = copy.deepcopy(module.layer)
    trainer = pl.Trainer(
        max_epochs=2,
        accumulate_grad_batches=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=None))
    assert isinstance(trainer.optimizers[0], LARC)

    larc = LARC(SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=0.01), trust_coefficient=0.01)
    sched = lr_scheduler.ExponentialLR(larc, 0.9)
    for _ in range(2):
        for first, second in zip(data[::2], data[1::2], strict=True):
            for x, y in (first, second):
                (torch.nn.functional.mse_loss(model(x), y) / 2).backward()
            larc.step()
            larc.zero_grad()
        sched.step()
    torch.testing.assert_close(list(module.layer.parameters()), list(model.parameters()))


@every_inner
def test_grad_scaler_unscales_before_norms_and_skips_overflows(inner):
    params, others = make_params(), make_params()
    larc, other = (LARC(INNER[inner](p), trust_coefficient=0.01) for p in (params, others))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        set_grads(params, step)
        set_grads(others, step)
        for p in params:
            p.grad = scaler.scale(p.grad)
        overflow = step == 2
        if overflow:
            params[1].grad.view(-1)[0] = torch.inf
        if step % 2:
            scaler.unscale_(larc)
        scaler.step(larc)
        scaler.update()
        if not overflow:
            other.step()
        assert_same(params, others)
    assert scaler.get_scale() == 512.0
    assert_same_state(larc, other)


# --- hooks -----------------------------------------------------------------------------------------------------------


def test_hooks_of_both_fire_once_each_and_nested():
    params = make_params()
    inner = SGD(params, lr=0.1)
    larc = LARC(inner)
    log = []
    for name, optimizer in (("larc", larc), ("inner", inner)):
        optimizer.register_step_pre_hook(lambda o, args, kwargs, name=name: log.append(f"{name} pre"))
        optimizer.register_step_post_hook(lambda o, args, kwargs, name=name: log.append(f"{name} post"))
        optimizer.register_state_dict_pre_hook(lambda o, name=name: log.append(f"{name} save pre"))
        optimizer.register_state_dict_post_hook(lambda o, s, name=name: log.append(f"{name} save post"))
        optimizer.register_load_state_dict_pre_hook(lambda o, s, name=name: log.append(f"{name} load pre"))
        optimizer.register_load_state_dict_post_hook(lambda o, name=name: log.append(f"{name} load post"))
    run(larc, params, 1)
    larc.load_state_dict(larc.state_dict())
    nested = [["larc {} pre", "inner {} pre", "inner {} post", "larc {} post"] for _ in range(3)]
    expected = [
        entry.format(of).replace("  ", " ")
        for of, entries in zip(("", "save", "load"), nested, strict=True)
        for entry in entries
    ]
    assert log == expected


def test_state_dict_hooks_may_replace_the_state_dict():
    larc = LARC(SGD(make_params(), lr=0.1))
    larc.register_state_dict_post_hook(lambda o, saved: {**saved, "note": 1})
    saved = larc.state_dict()
    assert saved["note"] == 1
    larc.register_load_state_dict_pre_hook(lambda o, state: {k: v for k, v in state.items() if k != "note"})
    larc.load_state_dict(saved)
    assert "note" in saved


def test_a_pre_hook_may_change_the_closure():
    params = make_params()
    larc = LARC(SGD(params, lr=0.1))
    set_grads(params, 0)
    larc.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: "replaced"), {}))
    assert larc.step(lambda: "given") == "replaced"
