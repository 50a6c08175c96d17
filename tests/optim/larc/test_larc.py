"""LARC is a torch Optimizer: what anyone may do with one, and that it leaves everything else as it found it."""

import copy
import importlib
import io
import pickle
import warnings

import lightning.pytorch as pl
import pytest
import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import lr_scheduler

from lightning_novograd.optim import NovoGrad
from lightning_novograd.optim.larc.optimizer import LARC, larc_arguments_from_openseq2seq

pytestmark = pytest.mark.usefixtures("kernels")  # each test with and without the C++ kernels

SGD, AdamW = torch.optim.SGD, torch.optim.AdamW
INNER = {
    "sgd": lambda params: SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "sgd_fused": lambda params: SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-3, fused=True),
    "sgd_foreach": lambda params: SGD(params, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "adamw": lambda params: AdamW(params, lr=1e-2),
    "adamw_fused": lambda params: AdamW(params, lr=1e-2, fused=True),
    "novograd": lambda params: NovoGrad(params, lr=1e-2, betas=(0.9, 0.5), weight_decay=1e-3),
}
every_inner = pytest.mark.parametrize("inner", INNER)
SHAPES = [(4, 3), (2, 3, 2), (7,)]


def make_params(seed=0, dtype=torch.float32, **options):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype=dtype, **options))
        for shape in SHAPES
    ]


def set_grads(params, step, scale=1.0):
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params:
        p.grad = (scale * torch.randn(p.shape, generator=generator, dtype=torch.float64)).to(p.dtype)


def run(optimizer, params, steps, first=0):
    for step in range(first, first + steps):
        set_grads(params, step)
        optimizer.step()


def assert_same(params, others):
    for p, other in zip(params, others, strict=True):
        torch.testing.assert_close(p, other, rtol=0, atol=0)


def assert_same_state(one, other):
    states = [[o.state[p] for group in o.param_groups for p in group["params"]] for o in (one, other)]
    torch.testing.assert_close(*states, rtol=0, atol=0)


def seen(larc):
    params = [p for group in larc.param_groups for p in group["params"]]
    return params, [larc.state[p] for p in params], torch.cat([factors for _, factors in larc.factors])


# --- one optimizer, seen twice ---------------------------------------------------------------------------------------


def assert_shares(larc):
    assert larc.param_groups is larc.optimizer.param_groups
    assert larc.state is larc.optimizer.state
    assert larc.defaults is larc.optimizer.defaults


def test_it_is_an_optimizer_that_shares_everything_with_the_wrapped_one():
    params = make_params()
    inner = SGD(params[:2], lr=0.1, momentum=0.9)
    larc = LARC(inner)
    assert isinstance(larc, torch.optim.Optimizer)
    assert_shares(larc)
    run(larc, params[:2], 1)
    assert_shares(larc)
    larc.load_state_dict(larc.state_dict())
    assert_shares(larc)
    larc.add_param_group({"params": params[2:], "larc": False})
    assert_shares(larc)
    assert [group["larc"] for group in inner.param_groups] == [True, False]


def test_a_group_added_to_the_wrapped_optimizer_is_under_control_too():
    params = make_params()
    inner = SGD(params[:2], lr=0.1)
    larc = LARC(inner, trust_coefficient=1e-3)
    inner.add_param_group({"params": params[2:]})
    run(larc, params, 1)
    assert {id(p) for layers, _ in larc.factors for p in layers} == {id(p) for p in params}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
@every_inner
def test_copies_are_independent_and_continue_alike(inner, duplicate):
    params = make_params()
    larc = LARC(INNER[inner](params), trust_coefficient=0.01)
    run(larc, params, 2)
    other = duplicate(larc)
    assert_shares(other)
    assert (other.target, type(other.optimizer)) == (larc.target, type(larc.optimizer))
    other_params = other.param_groups[0]["params"]
    assert not {id(p) for p in params} & {id(p) for p in other_params}
    before = [p.detach().clone() for p in params]
    run(other, other_params, 3, first=2)
    assert_same(params, before)
    run(larc, params, 3, first=2)
    assert_same(params, other_params)


# --- state_dict ------------------------------------------------------------------------------------------------------


@every_inner
def test_state_dict_round_trip_continues_bit_for_bit(inner):
    params = make_params()
    larc = LARC(INNER[inner](params), trust_coefficient=0.01)
    run(larc, params, 3)
    file = io.BytesIO()
    torch.save(larc.state_dict(), file)
    file.seek(0)
    resumed_params = [torch.nn.Parameter(p.detach().clone()) for p in params]
    resumed = LARC(INNER[inner](resumed_params))
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.param_groups[0]["larc_trust_coefficient"] == 0.01
    run(larc, params, 3, first=3)
    run(resumed, resumed_params, 3, first=3)
    assert_same(params, resumed_params)
    assert_same_state(larc, resumed)


@every_inner
def test_state_of_a_bare_optimizer_loads_and_leaves_the_options_alone(inner):
    params = make_params()
    groups = [{"params": params[:1]}, {"params": params[1:2]}, {"params": params[2:]}]
    bare = INNER[inner]([dict(group, lr=0.3) for group in groups])
    run(bare, params, 1)
    saved = bare.state_dict()
    larc = LARC(INNER[inner]([groups[0], {**groups[1], "larc": False}, {**groups[2], "larc_clip": False}]), 0.005)
    larc.load_state_dict(saved)
    run(larc, params, 1)
    keys = ("lr", "larc", "larc_clip", "larc_trust_coefficient")
    options = [tuple(group[key] for key in keys) for group in larc.param_groups]
    assert options == [(0.3, True, True, 0.005), (0.3, False, True, 0.005), (0.3, True, False, 0.005)]
    assert "larc" not in saved["param_groups"][0]


@every_inner
def test_state_of_a_bare_optimizer_loads_into_the_wrapped_one(inner):
    params = make_params()
    bare = INNER[inner](params)
    run(bare, params, 1)
    larc = LARC(INNER[inner](params), trust_coefficient=0.005)
    larc.optimizer.load_state_dict(bare.state_dict())
    run(larc, params, 1)
    assert larc.param_groups[0]["larc_trust_coefficient"] == 0.005


def test_a_state_with_other_groups_is_refused():
    params = make_params()
    larc = LARC(SGD(params, lr=0.1))
    with pytest.raises(ValueError, match="different number of parameter groups"):
        larc.load_state_dict(SGD([{"params": [p]} for p in params], lr=0.1).state_dict())


@pytest.mark.parametrize("flatten", [False, True], ids=["nested", "flat"])
def test_distributed_checkpoints_take_it(flatten):
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    model, resumed_model = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    larc, resumed = (LARC(SGD(m.parameters(), lr=0.1, momentum=0.9)) for m in (model, resumed_model))
    run(larc, list(model.parameters()), 2)
    larc.zero_grad()
    resumed_model.load_state_dict(model.state_dict())
    saved = get_optimizer_state_dict(model, larc, options=options)
    before = [p.detach().clone() for p in resumed_model.parameters()]
    set_optimizer_state_dict(resumed_model, resumed, saved, options=options)
    assert_same(resumed_model.parameters(), before)
    assert_shares(resumed)
    assert_same_state(larc, resumed)


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


# --- nothing else changes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trust_coefficient", [1e-3, 1e3], ids=["clipped", "within"])
@pytest.mark.parametrize(
    ("inner", "target"),
    # torch's foreach SGD writes into p.grad; with target gradient that is undone
    [("sgd", "gradient"), ("sgd_fused", "gradient"), ("sgd_foreach", "gradient"), ("sgd", "update")],
)
def test_gradients_are_the_same_objects_with_the_same_bits_afterwards(inner, target, trust_coefficient):
    params = make_params()
    larc = LARC(INNER[inner](params), trust_coefficient=trust_coefficient, target=target)
    set_grads(params, 0)
    grads = [p.grad for p in params]
    copies = [g.clone() for g in grads]
    larc.step()
    assert all(p.grad is g for p, g in zip(params, grads, strict=True))
    assert_same(grads, copies)


class Fails(SGD):
    def step(self, closure=None):
        raise ArithmeticError("inner step")


def fail(*args, **kwargs):
    raise ArithmeticError("inner step")


@pytest.mark.parametrize("target", ["gradient", "update"])
@pytest.mark.parametrize("cls", [SGD, Fails], ids=["piecewise", "whole"])
def test_an_exception_in_the_inner_step_leaves_everything_as_it_was(cls, target, monkeypatch):
    monkeypatch.setattr(importlib.import_module("torch.optim.sgd"), "sgd", fail)
    params = make_params()
    # a worker that calls the step of SGD
    larc = LARC(cls(params, lr=0.1, momentum=0.9, weight_decay=0.25, fused=False), target=target)
    groups, group = larc.param_groups, dict(larc.param_groups[0])
    weights = [p.detach().clone() for p in params]
    set_grads(params, 0)
    grads = [p.grad for p in params]
    with pytest.raises(ArithmeticError, match="inner step") as caught:
        larc.step()
    assert caught  # holds the traceback, and with it every frame of the step
    assert larc.param_groups is groups
    assert larc.param_groups[0] == group
    assert all(p.grad is g for p, g in zip(params, grads, strict=True))
    assert_same(params, weights)


@pytest.mark.parametrize("target", ["gradient", "update"])
def test_excluded_groups_are_left_to_the_wrapped_optimizer(target):
    params, others = make_params(), make_params()
    larc = LARC(
        SGD([{"params": params[:1]}, {"params": params[1:], "larc": False}], lr=0.1, momentum=0.9, weight_decay=0.1),
        trust_coefficient=1e-4,
        target=target,
    )
    bare = SGD(others, lr=0.1, momentum=0.9, weight_decay=0.1)
    run(larc, params, 3)
    run(bare, others, 3)
    assert_same(params[1:], others[1:])
    assert not torch.equal(params[0], others[0])


def test_options_may_differ_between_groups():
    params = make_params()
    groups = [
        {"params": params[:1], "larc_trust_coefficient": 1e-3},
        {"params": params[1:2], "larc_clip": False},
        {"params": params[2:], "larc_min_update": 0.5, "larc_eps": 1.0},
    ]
    larc = LARC(SGD(groups, lr=0.1), trust_coefficient=2e-3)
    set_grads(params, 0)
    weights, grads = ([t.norm() for t in ts] for ts in (params, [p.grad for p in params]))
    larc.step()
    ratios = [1e-3 * weights[0] / grads[0] / 0.1, 2e-3 * weights[1] / grads[1], torch.tensor(0.5)]
    torch.testing.assert_close(torch.cat([f for _, f in larc.factors]), torch.stack(ratios).detach())


@pytest.mark.parametrize("target", ["gradient", "update"])
def test_layers_without_a_gradient_stay_and_make_no_state(target):
    params = make_params()
    weights = [p.detach().clone() for p in params]
    larc = LARC(SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1), target=target)
    larc.step()
    set_grads(params, 0)
    params[1].grad = None
    larc.step()
    assert_same(params[1:2], weights[1:2])
    assert params[1] not in larc.state
    assert not torch.equal(params[0], weights[0])


@every_inner
def test_a_nan_gradient_harms_its_own_layer_only(inner):
    params, others = make_params(), make_params()
    larc, other = (LARC(INNER[inner](p), trust_coefficient=0.01) for p in (params, others))
    for step in range(3):
        set_grads(params, step)
        set_grads(others, step)
        params[1].grad.view(-1)[step] = torch.nan
        larc.step()
        other.step()
    assert params[1].isnan().any()
    assert_same([params[0], params[2]], [others[0], others[2]])


@pytest.mark.parametrize("target", ["gradient", "update"])
@pytest.mark.parametrize("clip", [True, False], ids=["clip", "scale"])
@pytest.mark.parametrize("lr", [0.0, torch.tensor(0.0)], ids=["float", "tensor"])
def test_a_learning_rate_of_zero_moves_nothing(lr, clip, target):
    params = make_params()
    params[1].detach().zero_()
    weights = [p.detach().clone() for p in params]
    larc = LARC(SGD(params, lr=lr, momentum=0.9, weight_decay=0.1, foreach=False), clip=clip, target=target)
    run(larc, params, 2)
    assert_same(params, weights)


@pytest.mark.parametrize("target", ["gradient", "update"])
def test_a_tensor_learning_rate_is_a_number(target):
    params, others = make_params(), make_params()
    run(LARC(SGD(params, lr=torch.tensor(0.1)), target=target, trust_coefficient=1e-3), params, 2)
    run(LARC(SGD(others, lr=0.1), target=target, trust_coefficient=1e-3), others, 2)
    torch.testing.assert_close(params, others)


@pytest.mark.parametrize(
    ("option", "value"), [("larc_trust_coefficient", -1.0), ("larc_bogus", 1), ("larc_clip", "no")]
)
def test_options_of_a_state_dict_are_checked(option, value):
    larc = LARC(SGD(make_params(), lr=0.1))
    state_dict = larc.state_dict()
    state_dict["param_groups"][0][option] = value
    with pytest.raises((ValueError, TypeError), match=option):
        larc.load_state_dict(state_dict)


# --- how the work is divided -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cacheful", [1, 20, 1 << 20])
@every_inner
def test_a_cacheful_at_a_time_and_all_at_once_are_the_same(inner, cacheful, kernels, monkeypatch):
    monkeypatch.setattr("lightning_novograd.optim.larc.factors._CACHEFUL", cacheful)
    params, others = make_params(), make_params()
    pieces, whole = (
        LARC(INNER[inner]([{"params": p[:1], "lr": 0.05}, {"params": p[1:]}]), trust_coefficient=0.01)
        for p in (params, others)
    )
    calls = []
    whole.optimizer.register_step_post_hook(lambda *_: calls.append(1))  # an onlooker: one step only
    run(pieces, params, 3)
    run(whole, others, 3)
    assert len(calls) == 3
    # fused workers, which work on pieces only, round differently
    fused = {"torch": ["sgd", "sgd_fused", "novograd"], "cpp": list(INNER)}[kernels]
    rounding = {"rtol": 1e-6, "atol": 1e-7} if inner in fused else {"rtol": 0, "atol": 0}
    for results in zip(*(seen(optimizer) for optimizer in (pieces, whole)), strict=True):
        torch.testing.assert_close(*results, **rounding)


def test_whoever_patches_the_step_of_the_wrapped_optimizer_sees_one_call(monkeypatch):
    monkeypatch.setattr("lightning_novograd.optim.larc.factors._CACHEFUL", 1)
    params = make_params()
    larc = LARC(SGD(params, lr=0.1))
    calls = []
    step = larc.optimizer.step
    larc.optimizer.step = lambda: calls.append(1) or step()
    run(larc, params, 2)
    assert len(calls) == 2


@every_inner
def test_factors_that_stay_on_the_device_give_the_same(inner, monkeypatch):
    params, others = make_params(), make_params()
    numbers, tensors = (LARC(INNER[inner](p), trust_coefficient=0.01) for p in (params, others))
    run(numbers, params, 3)
    monkeypatch.setattr("lightning_novograd.optim.larc.optimizer.numbers", torch.Tensor.unbind)
    run(tensors, others, 3)
    torch.testing.assert_close(params, others, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("target", ["gradient", "update"])
@pytest.mark.parametrize("clip", [True, False], ids=["clip", "scale"])
def test_no_value_on_the_device_is_looked_at(clip, target):
    # the meta device has no values: whoever asks for one, as a host sync would, gets an exception
    params = make_params(device="meta")
    larc = LARC(SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1), clip=clip, target=target, min_update=0.1)
    for p in params:
        p.grad = torch.empty_like(p)
    larc.step()
    [(_, factors)] = larc.factors
    assert factors.is_meta
    with pytest.raises((RuntimeError, NotImplementedError)):
        factors.tolist()


LAYOUTS = {
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 2).contiguous().transpose(0, 2),
    "strided": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    "expanded gradient": lambda x: x,
}


@pytest.mark.parametrize("target", ["gradient", "update"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_of_the_memory_does_not_matter(layout, target):
    start, grad = torch.randn(2, 3, 4, 5, 2, generator=torch.Generator().manual_seed(0))
    if layout == "expanded gradient":
        grad = torch.tensor(0.5).expand(start.shape)
    other, other_grad = start.clone(), grad.clone(memory_format=torch.contiguous_format)
    weight = torch.nn.Parameter(LAYOUTS[layout](start))
    weight.grad = LAYOUTS[layout](grad)
    strides = weight.stride()
    expected = torch.nn.Parameter(other)
    expected.grad = other_grad
    for p in (weight, expected):
        larc = LARC(SGD([p], lr=0.1, momentum=0.9, weight_decay=0.01), trust_coefficient=1e-3, target=target)
        larc.step()
        larc.step()
    assert weight.stride() == strides
    torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-8, check_stride=False)


@pytest.mark.parametrize("target", ["gradient", "update"])
def test_layers_of_no_and_of_one_element(target):
    empty, scalar = torch.nn.Parameter(torch.zeros(0, 3)), torch.nn.Parameter(torch.tensor(2.0))
    empty.grad, scalar.grad = torch.zeros(0, 3), torch.tensor(100.0)
    LARC(SGD([empty, scalar], lr=0.1), trust_coefficient=0.01, target=target).step()
    torch.testing.assert_close(scalar.detach(), torch.tensor(1.98))


@pytest.mark.parametrize("target", ["gradient", "update"])
def test_layers_of_several_dtypes_share_a_group(target):
    params = [*make_params(dtype=torch.float64), *make_params(dtype=torch.bfloat16), *make_params()]
    larc = LARC(SGD(params, lr=0.1), trust_coefficient=0.01, target=target)
    run(larc, params, 2)
    assert sum(len(factors) for _, factors in larc.factors) == len(params)
    references = make_params(dtype=torch.float64)
    run(LARC(SGD(references, lr=0.1), trust_coefficient=0.01, target=target), references, 2)
    assert_same(params[:3], references)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64], ids=str)
@pytest.mark.parametrize("target", ["gradient", "update"])
def test_other_dtypes_follow_float32(dtype, target):
    params = make_params(dtype=dtype)
    others = [
        torch.nn.Parameter(torch.view_as_real(p.detach()) if p.is_complex() else p.detach().float()) for p in params
    ]
    others = [torch.nn.Parameter(o.detach().clone()) for o in others]
    larc, other = (LARC(SGD(p, lr=0.1, momentum=0.9), trust_coefficient=0.05, target=target) for p in (params, others))
    for step in range(3):
        set_grads(params, step)
        for p, o in zip(params, others, strict=True):
            o.grad = torch.view_as_real(p.grad).clone() if p.is_complex() else p.grad.float()
        larc.step()
        other.step()
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if dtype.is_complex else {"rtol": 0.03, "atol": 0.02}
    for p, o in zip(params, others, strict=True):
        actual = torch.view_as_real(p.detach()) if p.is_complex() else p.detach().float()
        torch.testing.assert_close(actual, o.detach(), **tolerance)


# --- refusals --------------------------------------------------------------------------------------------------------

BAD_OPTIONS = [
    ({"trust_coefficient": -1.0}, ValueError, "larc_trust_coefficient value: -1.0"),
    ({"eps": float("nan")}, ValueError, "larc_eps value: nan"),
    ({"min_update": float("inf")}, ValueError, "larc_min_update value: inf"),
    ({"clip": "false"}, TypeError, "larc_clip value: 'false'; allowed: True, False"),
    ({"target": "gradiant"}, ValueError, "'gradiant'; did you mean 'gradient'"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS, ids=lambda v: str(v)[:30])
def test_bad_options_are_refused_and_the_optimizer_stays_bare(options, error, message):
    inner = SGD(make_params(), lr=0.1)
    with pytest.raises(error, match=message):
        LARC(inner, **options)
    assert "larc" not in inner.param_groups[0]
    LARC(inner)


@pytest.mark.parametrize(
    "add",
    [
        lambda params, group: LARC(SGD([group], lr=0.1)),
        lambda params, group: LARC(SGD(params[1:], lr=0.1)).add_param_group(group),
    ],
    ids=["constructor", "add_param_group"],
)
def test_a_misspelt_option_of_a_group_is_refused(add):
    params = make_params()
    with pytest.raises(ValueError, match="'larc_trust_coeficient'; did you mean 'larc_trust_coefficient'"):
        add(params, {"params": params[:1], "larc_trust_coeficient": 0.1})


class NoLR(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {})


BAD_OPTIMIZERS = {
    "module": (lambda p: torch.nn.Linear(1, 1), TypeError, "wraps a torch.optim.Optimizer, not a Linear"),
    "lbfgs": (lambda p: torch.optim.LBFGS(p), TypeError, "LBFGS evaluates its closure several times"),
    "larc": (lambda p: LARC(SGD(p, lr=0.1)), ValueError, "LARC is under LARC already"),
    "wrapped": (lambda p: LARC(SGD(p, lr=0.1)).optimizer, ValueError, "SGD is under LARC already"),
    "differentiable": (lambda p: SGD(p, lr=0.1, differentiable=True), ValueError, "differentiable=True"),
    "no lr": (NoLR, ValueError, "param group 0 of NoLR has no 'lr'"),
}


@pytest.mark.parametrize("case", BAD_OPTIMIZERS)
def test_optimizers_that_cannot_be_controlled_are_refused(case):
    build, error, message = BAD_OPTIMIZERS[case]
    with pytest.raises(error, match=message):
        LARC(build(make_params()))


def test_flattened_layers_are_refused():
    params = make_params()
    params[0]._fsdp_flattened = True
    with pytest.raises(ValueError, match="LARC needs whole layers"):
        LARC(SGD(params, lr=0.1))


@pytest.mark.parametrize("target", ["gradient", "update"])
def test_sparse_gradients_are_refused_before_anything_moves(target):
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    dense = torch.nn.Parameter(torch.ones(3))
    larc = LARC(SGD([dense, *embedding.parameters()], lr=0.1), target=target)
    (embedding(torch.tensor([1])).sum() + dense.sum()).backward()
    with pytest.raises(RuntimeError, match="LARC does not support sparse gradients"):
        larc.step()
    assert torch.equal(dense, torch.ones(3))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "larc_eta is missing"),
        ({"larc_eta": 0.1, "larc_modes": "clip"}, "'larc_modes'; did you mean 'larc_mode'"),
        ({"larc_eta": 0.1, "larc_mode": "scaled"}, "'scaled'; did you mean 'scale'"),
    ],
    ids=["missing", "misspelt", "mode"],
)
def test_wrong_openseq2seq_keys_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        larc_arguments_from_openseq2seq(params)
