"""A Composite steps as its parts do, and is driven as one optimizer is: closures, hooks, scalers, LR schedulers."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from optim.composite.composites import MUON_LR, PARTS, SGD, AdamW
from optim.larc.larc_cases import assert_same, assert_same_state, make_params, run, set_grads
from torch.optim.optimizer import register_optimizer_step_post_hook

from lightning_novograd.optim import LARC, Composite, NovoGrad

BARE = [name for name in PARTS if "larc" not in name]
every_composite = pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)


class Separate:
    """The parts, each driven on its own."""

    def __init__(self, parts):
        self.parts = parts

    def step(self):
        for part in self.parts:
            part.step()

    @property
    def param_groups(self):
        return [group for part in self.parts for group in part.param_groups]


# --- the step --------------------------------------------------------------------------------------------------------


@every_composite
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_step_is_every_parts_step(parts, dtype, kernels):
    params, others = make_params(dtype=dtype), make_params(dtype=dtype)
    composite, separate = Composite(parts(params)), Separate(parts(others))
    for step in range(4):
        run(composite, params, 1, first=step)
        run(separate, others, 1, first=step)
        assert_same(params, others)
    for part, other in zip(composite.optimizers, separate.parts, strict=True):
        assert_same_state(part, other)


@pytest.mark.parametrize(("parts", "target"), [*((name, "auto") for name in BARE), ("twice the same", "gradient")])
def test_larc_around_all_is_larc_around_each(parts, target, kernels):
    params, others = make_params(), make_params()
    larc = LARC(Composite(PARTS[parts](params)), 0.01, target=target)
    assert larc.target == ("update" if target == "auto" else target)
    each = Separate([LARC(part, 0.01, target=larc.target) for part in PARTS[parts](others)])
    decays = [group.get("weight_decay") for group in larc.param_groups]
    for step in range(3):
        run(larc, params, 1, first=step)
        run(each, others, 1, first=step)
    for p, other in zip(params, others, strict=True):
        torch.testing.assert_close(p, other, rtol=1e-6, atol=1e-7)
    assert [group.get("weight_decay") for group in larc.param_groups] == decays


@pytest.mark.parametrize(
    ("parts", "larc"),
    [
        *((name, False) for name in PARTS),
        ("novograd + adamw", True),
        *(pytest.param(name, True, marks=pytest.mark.slow) for name in BARE if name != "novograd + adamw"),
    ],
)
def test_the_step_can_be_compiled(parts, larc):
    def train(compiled):
        params = make_params()
        optimizer = Composite(PARTS[parts](params))
        optimizer = LARC(optimizer) if larc else optimizer
        torch._dynamo.reset()
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for index in range(3):
            set_grads(params, index)
            step()
        return params

    # Muon orthogonalizes in bfloat16, compiled as otherwise, but not always in the same order
    of_bfloat16 = {"rtol": 0, "atol": 3 * MUON_LR * 2**-8} if "muon" in parts else {}
    torch.testing.assert_close(train(compiled=True), train(compiled=False), **of_bfloat16)


@every_composite
def test_the_closure_runs_once_with_gradients_enabled_before_any_part_steps(parts):
    params, others = make_params(), make_params()
    composite, separate = Composite(parts(params)), Separate(parts(others))
    calls = []

    def loss_of(ps):
        return sum((p * (len(calls) + i)).square().sum() for i, p in enumerate(ps))

    def closure():
        calls.append(torch.is_grad_enabled())
        composite.zero_grad()
        loss = loss_of(params)
        loss.backward()
        return loss

    for _ in range(2):
        with torch.no_grad():
            loss = composite.step(closure)
        for p in others:
            p.grad = None
        expected = loss_of(others)
        expected.backward()
        separate.step()
        torch.testing.assert_close(loss, expected, rtol=0, atol=0)
        assert_same(params, others)
    assert calls == [True, True]
    assert composite.step() is None


def test_one_part_may_be_differentiable():
    start = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    through, plain = start.clone(), torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    composite = Composite([SGD([through], lr=0.1, differentiable=True), AdamW([plain])])
    through.grad, plain.grad = start.square(), torch.ones(2, dtype=torch.float64)
    composite.step()
    through.sum().backward()
    torch.testing.assert_close(start.grad, 1 - 0.1 * 2 * start.detach())
    assert plain.grad_fn is None


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_is_every_parts_own(set_to_none):
    params = make_params()
    composite = Composite([SGD(params[:1], lr=0.1), AdamW(params[1:])])
    calls = []
    original = composite.optimizers[1].zero_grad
    composite.optimizers[1].zero_grad = lambda **options: calls.append(options) or original(**options)
    set_grads(params, 0)
    composite.zero_grad(set_to_none)
    assert calls == [{"set_to_none": set_to_none}]
    for p in params:
        assert p.grad is None if set_to_none else not p.grad.any()


def test_the_profiler_shows_the_composite_around_its_parts():
    params = make_params()
    composite = Composite([SGD(params[:1], lr=0.1), AdamW(params[1:])])
    set_grads(params, 0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        composite.step()
        composite.zero_grad()
    spans = {event.name: event.time_range for event in profile.events() if event.name.startswith("Optimizer.")}
    for name in ("step", "zero_grad"):
        whole = spans[f"Optimizer.{name}#Composite.{name}"]
        for part in ("SGD", "AdamW"):
            inner = spans[f"Optimizer.{name}#{part}.{name}"]
            assert whole.start <= inner.start <= inner.end <= whole.end


def test_hooks_run_around_the_whole_step_and_those_of_parts_around_theirs():
    params = make_params()
    composite = Composite([SGD(params[:1], lr=0.1), AdamW(params[1:])])
    log = []
    for name, optimizer in (
        ("all", composite),
        *((["sgd", "adamw"][i], o) for i, o in enumerate(composite.optimizers)),
    ):
        optimizer.register_step_pre_hook(lambda o, args, kwargs, name=name: log.append(f"{name} pre"))
        optimizer.register_step_post_hook(lambda o, args, kwargs, name=name: log.append(f"{name} post"))
    handle = register_optimizer_step_post_hook(lambda o, args, kwargs: log.append(type(o).__name__))
    run(composite, params, 1)
    handle.remove()
    assert log == ["all pre", "sgd pre", "sgd post", "SGD", "adamw pre", "adamw post", "AdamW", "all post", "Composite"]
    composite.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: "replaced"), {}))
    assert composite.step(lambda: "given") == "replaced"


@every_composite
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"]
)
def test_copies_are_independent_and_continue_alike(parts, duplicate):
    params = make_params()
    composite = Composite(parts(params))
    composite.param_groups.reverse()  # an order that is not the parts'
    run(composite, params, 2)
    params2, other = duplicate((params, composite))
    assert repr(other) == repr(composite)
    assert other.defaults == composite.defaults
    before = [p.detach().clone() for p in params]
    run(other, params2, 2, first=2)
    assert_same(params, before)
    run(composite, params, 2, first=2)
    assert_same(params, params2)
    assert_same_state(composite, other)


# --- GradScaler ------------------------------------------------------------------------------------------------------


@every_composite
@pytest.mark.parametrize("unscaled", ["by step", "before", "never by the parts"])
def test_a_grad_scaler_unscales_once_and_skips_the_whole_step(parts, unscaled):
    params, others = make_params(), make_params()
    composite, separate = Composite(parts(params)), Separate(parts(others))
    fused = all(getattr(part, "_step_supports_amp_scaling", False) for part in composite.optimizers)
    assert composite._step_supports_amp_scaling == fused
    if unscaled == "never by the parts":  # as this package does where gradients are clipped
        composite._step_supports_amp_scaling = False
        assert not composite._step_supports_amp_scaling
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        set_grads(params, step)
        for p in params:
            p.grad = scaler.scale(p.grad)
        overflow = step == 2
        if overflow:
            params[-1].grad.view(-1)[0] = torch.inf
        if unscaled == "before":
            scaler.unscale_(composite)
        scaler.step(composite)
        scaler.update()
        if not overflow:
            run(separate, others, 1, first=step)
        for p, other in zip(params, others, strict=True):
            torch.testing.assert_close(p, other, rtol=1e-6, atol=1e-7)
        for optimizer in (composite, *composite.optimizers):
            assert not hasattr(optimizer, "grad_scale")
            assert not hasattr(optimizer, "found_inf")
    assert scaler.get_scale() == 512.0


@pytest.mark.parametrize("unscales", [False, True])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
def test_a_copy_leaves_unscaling_to_whom_the_original_leaves_it(duplicate, unscales):
    params = make_params()
    composite = Composite([NovoGrad(params[:1], fused=True), AdamW(params[1:], fused=True)])
    composite._step_supports_amp_scaling = unscales
    twin = duplicate(duplicate(composite))
    assert twin._unscales == unscales
    twin.load_state_dict(twin.state_dict())
    assert twin._unscales == unscales


def test_a_part_that_fails_is_left_without_what_the_scaler_has_set():
    params = make_params()
    composite = Composite([NovoGrad(params[:1], fused=True), AdamW(params[1:], fused=True)])
    composite.optimizers[0].grad_scale = torch.tensor(2.0)
    seen = []

    def fail(optimizer, args, kwargs):
        seen.append((optimizer.grad_scale, optimizer.found_inf))
        raise RuntimeError("in the second part")

    composite.optimizers[1].register_step_pre_hook(fail)
    composite.grad_scale, composite.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    set_grads(params, 0)
    with pytest.raises(RuntimeError, match="in the second part"):
        composite.step()
    assert seen == [(4.0, 0.0)]
    assert composite.optimizers[0].grad_scale == 2
    assert not hasattr(composite.optimizers[0], "found_inf")
    assert not hasattr(composite.optimizers[1], "grad_scale")


# --- train and eval --------------------------------------------------------------------------------------------------


class Averaging(SGD):
    """Is told about evaluation, as Schedule-Free's are."""

    def __init__(self, params: list, log: list[str]) -> None:
        super().__init__(params, lr=0.1)
        self.log = log

    def train(self) -> None:
        self.log.append("train")

    def eval(self) -> None:
        self.log.append("eval")


@pytest.mark.parametrize("wrap", [lambda o: o, LARC], ids=["bare", "larc"])
def test_parts_are_told_of_evaluation(wrap: Callable):
    params, log = make_params(), []
    composite = Composite([wrap(Averaging(params[:1], log)), AdamW(params[1:2]), wrap(Averaging(params[2:], log))])
    composite.eval()
    assert log == ["eval", "eval"]
    composite.train()
    assert log[2:] == ["train", "train"]
    if wrap is not LARC:
        LARC(composite).eval()
        assert log[4:] == ["eval", "eval"]


def test_without_a_part_to_be_told_there_is_nothing_to_call():
    params = make_params()
    composite = Composite([SGD(params[:1], lr=0.1), AdamW(params[1:])])
    for optimizer in (composite, LARC(composite)):
        assert not hasattr(optimizer, "train")
        assert not hasattr(optimizer, "eval")
    with pytest.raises(AttributeError, match=r"'Composite\(SGD, AdamW\)' object has no attribute 'eval'"):
        composite.eval()
