"""LARC's fused CPU workers, and the C++ kernels, against its general path in float64, over the table of inputs."""

import warnings
from collections import defaultdict

import pytest
import torch
from optim_db import LAYERS, STEPS, WORKERS, assert_close, layers, set_grads, terms_of
from torch.testing._internal.two_tensor import TwoTensor

from lightning_novograd.optim import NovoGrad
from lightning_novograd.optim.kernels.cpu import library
from lightning_novograd.optim.larc import LARC, cpu
from lightning_novograd.optim.larc.fused import fused_step

SGD, Adam, AdamW, RMSprop = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop
INNER = {
    "sgd": (SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
    "sgd, fused": (SGD, {"lr": 0.05, "momentum": 0.9, "fused": True}),
    "sgd, dampening": (SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.4, "weight_decay": 0.01}),
    "sgd, dampening 1": (SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 1.0}),
    "sgd, dampening > 1": (SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 1.5}),
    "sgd, no momentum": (SGD, {"lr": 0.05, "weight_decay": 0.1}),
    "sgd, lr tensor": (SGD, {"lr": torch.tensor(0.05), "momentum": 0.9}),
    "novograd": (NovoGrad, {"lr": 0.02, "betas": (0.9, 0.5), "weight_decay": 1e-3}),
    "novograd, amsgrad": (NovoGrad, {"lr": 0.02, "betas": (0.95, 0.25), "amsgrad": True, "grad_averaging": True}),
    "novograd, maximize": (NovoGrad, {"lr": 0.02, "maximize": True, "weight_decay": 0.1}),
    "novograd, no momentum": (NovoGrad, {"lr": 0.02, "betas": (0.0, 0.5), "weight_decay": 1e-3}),
    "novograd, lr tensor": (NovoGrad, {"lr": torch.tensor([0.02])}),
}
# Those that the C++ kernels alone take.
INNER_CPP = {
    "sgd, nesterov": (SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "sgd, maximize": (SGD, {"lr": 0.05, "momentum": 0.9, "maximize": True, "weight_decay": 0.01}),
    "novograd, luc": (NovoGrad, {"lr": 0.02, "luc": True, "luc_trust": 5e-3, "weight_decay": 1e-3}),
    "adamw": (AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    "adamw, fused": (AdamW, {"lr": 0.01, "fused": True}),
    "adamw, lr tensor": (AdamW, {"lr": torch.tensor(0.01, dtype=torch.float64)}),
    "adamw, betas": (AdamW, {"lr": 0.01, "betas": (0.5, 0.6), "eps": 1e-3, "maximize": True}),
    "adam": (Adam, {"lr": 0.01, "weight_decay": 0.1}),
    "adam, maximize": (Adam, {"lr": 0.01, "weight_decay": 0.1, "maximize": True}),
}
# Those whose own step the C++ kernels leave to them: they save the weights before it and shorten it afterwards.
INNER_SAVED = {
    "rmsprop": (RMSprop, {"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.01}),
    "adamw, amsgrad": (AdamW, {"lr": 0.01, "amsgrad": True}),
    "novograd, foreach": (NovoGrad, {"lr": 0.02, "foreach": True}),
}
ALL = {**INNER, **INNER_CPP, **INNER_SAVED}
OPTIONS = {
    "defaults": {},
    "tight": {"trust_coefficient": 1e-3},
    "wide": {"trust_coefficient": 1e3},
    "scale": {"trust_coefficient": 0.05, "clip": False},
    "min-update": {"trust_coefficient": 1e-3, "min_update": 0.05},
    "zero-trust": {"trust_coefficient": 0.0},
    "tiny-trust": {"trust_coefficient": 1e-11},  # factors that the kernel cannot be told
}
# Layers whose weights, gradients or moments have holes or are laid out in another order.
GENERAL = {"transposed", "every-other", "channels-last", "many-rows"}
FUSED = [kind for kind in LAYERS if kind not in GENERAL]


def build(inner, params, worker=None, **options):
    optimizer, settings = ALL[inner]
    return LARC(optimizer(params, **{**settings, **(worker or {})}), **options)


def by_layer(larc):
    return {p: factor for layers, factors in larc.factors for p, factor in zip(layers, factors, strict=True)}


@pytest.fixture
def taken(monkeypatch):
    """The layers that fused workers have taken."""
    layers = []

    def spy(*args):
        worker = fused_step(*args)

        def counted(*args):
            factors, others = worker(*args)
            layers.extend(p for ps, _ in factors for p in ps)
            return factors, others

        return worker and counted

    monkeypatch.setattr("lightning_novograd.optim.larc.optimizer.fused_step", spy)
    return layers


def condition(values):
    """How much larger the terms of the last of `values` are than what they came to."""
    largest = values[-1].abs().amax() if values[-1].numel() else torch.tensor(0.0)
    return terms_of(values) / largest.clamp(min=1e-30)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    ("inner", "kernels"),
    [*((inner, "torch") for inner in INNER), *((inner, "cpp") for inner in (*INNER, *INNER_CPP))],
    indirect=["kernels"],
)
def test_every_layer_is_stepped_as_in_float64(inner, options, kernels, taken):
    params, exact = layers(torch.float32), layers(torch.float64)
    with torch.no_grad():
        for kind, p in params.items():
            exact[kind].copy_(p)
    larc = build(inner, params.values(), **OPTIONS[options])
    general = build(inner, exact.values(), WORKERS["single"], **OPTIONS[options])
    history = defaultdict(list, {(kind, "weight"): [p.detach().clone()] for kind, p in exact.items()})
    for step in range(STEPS):
        set_grads(params, step)
        for kind, p in params.items():
            exact[kind].grad = None if p.grad is None else p.grad.double()
        versions = {kind: p._version for kind, p in params.items()}
        larc.step()
        general.step()
        factors, expected_factors = by_layer(larc), by_layer(general)
        for kind in FUSED:
            p, e = params[kind], exact[kind]
            what = f"{kind} after step {step + 1}"
            weights, updates = history[kind, "weight"], history[kind, "update"]
            weights.append(e.detach().clone())
            assert_close(p, weights[-1], torch.float32, what, terms_of(weights), step + 1)
            assert larc.state[p].keys() == general.state[e].keys(), what
            for key, moment in general.state[e].items():
                if key == "step":
                    assert larc.state[p][key] == moment
                elif moment is not None:
                    history[kind, key].append(moment.clone())
                    terms = terms_of(history[kind, key])
                    assert_close(larc.state[p][key], moment, torch.float32, f"{key} of {what}", terms, step + 1)
            if p.grad is not None:
                # |w| / |update| has the relative error of both norms
                factor = expected_factors[e]
                updates.append((weights[-1] - weights[-2]) / factor.clamp(min=1e-30))
                terms = factor * (condition(weights[:-1]) + condition(updates))
                assert_close(factors[p], factor, torch.float32, f"factor of {what}", terms, step + 1)
                assert p._version > versions[kind], what
    assert [kind for kind, p in params.items() if any(p is t for t in taken)] == FUSED


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("inner", INNER_SAVED)
def test_cpp_saves_and_limits_as_the_general_path(inner, options, taken, cpp_kernels, monkeypatch):
    params, others = layers(torch.float32), layers(torch.float32)
    cpp, general = (build(inner, ps.values(), **OPTIONS[options]) for ps in (params, others))
    for step in range(STEPS):
        set_grads(params, step)
        set_grads(others, step)
        cpp.step()
        with monkeypatch.context() as patch:
            patch.setattr(library, "load", lambda: None)
            general.step()
    for kind, p in params.items():
        assert_close(p, others[kind].detach().double(), torch.float32, kind)
        if p.grad is not None:
            factors = by_layer(cpp)[p], by_layer(general)[others[kind]]
            torch.testing.assert_close(*factors, rtol=1e-4, atol=0)
    assert not taken


@pytest.mark.parametrize("inner", ["novograd", "rmsprop", "novograd, luc"])
def test_a_step_within_the_bound_is_left_exactly_alone(inner, kernels):
    params, others = layers(torch.float32), layers(torch.float32)
    larc, bare = build(inner, params.values(), trust_coefficient=1e3), build(inner, others.values()).optimizer
    for step in range(STEPS):
        for optimizer, mine in ((larc, params), (bare, others)):
            set_grads(mine, step)
            optimizer.step()
    for kind in FUSED:
        assert torch.equal(params[kind], others[kind]), kind


NOT_FUSED = {
    "another optimizer": lambda params: torch.optim.NAdam(params),
    "foreach asked for": lambda params: SGD(params, lr=0.1, foreach=True),
    "fused refused": lambda params: NovoGrad(params, fused=False),
    "nesterov": lambda params: SGD(params, lr=0.1, momentum=0.9, nesterov=True),
    "maximize": lambda params: SGD(params, lr=0.1, maximize=True),
    "luc": lambda params: NovoGrad(params, luc=True),
    "adam": lambda params: torch.optim.Adam(params),
    "excluded": lambda params: SGD([{"params": params, "larc": False}], lr=0.1),
}


@pytest.mark.parametrize("case", NOT_FUSED)
def test_all_else_takes_the_general_path(case, taken):
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    LARC(NOT_FUSED[case]([weight])).step()
    assert not taken
    assert not torch.equal(weight, torch.ones(3))


def test_a_subclass_of_sgd_takes_the_general_path(taken):
    class Mine(SGD):
        pass

    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    LARC(Mine([weight], lr=0.1)).step()
    assert not taken


@pytest.mark.parametrize("inner", ["sgd", "novograd"])
def test_an_exception_leaves_groups_and_weights_as_they_were(inner, monkeypatch):
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    larc = build(inner, [weight])
    groups, group = larc.param_groups, dict(larc.param_groups[0])

    def fail(*args, **kwargs):
        raise ArithmeticError("kernel")

    monkeypatch.setattr(cpu, "fused_sgd_step", fail)
    with pytest.raises(ArithmeticError, match="kernel"):
        larc.step()
    assert larc.param_groups is groups
    assert larc.param_groups[0] == group
    assert torch.equal(weight, torch.ones(3))


def test_a_moment_in_half_precision_takes_the_general_path(taken):
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    larc = build("novograd", [weight])
    larc.step()
    larc.state[weight]["exp_avg"] = larc.state[weight]["exp_avg"].bfloat16()
    taken.clear()
    larc.step()
    assert not taken


@pytest.mark.parametrize("inner", ["sgd", "novograd", "adamw", "rmsprop"])
def test_a_moment_of_another_shape_is_an_error_as_without_larc(inner, kernels):
    """Kernels that trusted the moment's size would read and write past its end."""
    weight = torch.nn.Parameter(torch.ones(3, 4))
    larc = build(inner, [weight])
    weight.grad = torch.ones(3, 4)
    larc.step()
    weight.data = torch.ones(3, 4000)
    weight.grad = torch.ones(3, 4000)
    with pytest.raises(RuntimeError, match=r"must match the size of tensor|shape"):
        larc.step()


@pytest.mark.parametrize("inner", ["sgd", "novograd, luc", "adamw", "rmsprop"])
def test_cpp_gives_the_same_bits_with_any_number_of_threads(inner, cpp_kernels):
    def train(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            params = layers(torch.float32, FUSED)
            larc = build(inner, params.values(), trust_coefficient=1e-3)
            for step in range(3):
                set_grads(params, step)
                larc.step()
        finally:
            torch.set_num_threads(before)
        return params

    one, three = train(1), train(3)
    for kind in one:
        assert torch.equal(one[kind], three[kind]), kind


@pytest.mark.parametrize(
    "inner", ["novograd", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sgd", "adamw", "rmsprop"))]
)
def test_the_step_can_be_compiled(inner, kernels):
    """Inside torch.compile the general path is taken: it cannot look into the kernels."""

    def train(compiled):
        params = layers(torch.float32, ["conv", "vector"])
        larc = build(inner, params.values(), trust_coefficient=1e-3)
        step = torch.compile(larc.step, backend="eager") if compiled else larc.step
        for index in range(2):
            set_grads(params, index)
            step()
        return list(params.values())

    torch.testing.assert_close(train(compiled=True), train(compiled=False))


@pytest.mark.parametrize("inner", ["sgd", "novograd", "adamw", "rmsprop"])
@pytest.mark.parametrize("shared", ["twice", "same memory", "overlapping"])
def test_layers_that_share_memory_are_not_stepped_at_the_same_time(inner, shared, cpp_kernels):
    def train(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            memory = torch.randn(90_000, generator=torch.Generator().manual_seed(0))
            first = torch.nn.Parameter(memory[:60_000])
            second = {"twice": memory[:0], "same memory": memory[:60_000], "overlapping": memory[30_000:]}[shared]
            params = [first, first if shared == "twice" else torch.nn.Parameter(second)]
            with warnings.catch_warnings(action="ignore"):  # torch's, that a parameter is there twice
                larc = build(inner, params, trust_coefficient=1e-2)
            for step in range(5):
                for index, p in enumerate(params):
                    p.grad = torch.randn(len(p), generator=torch.Generator().manual_seed(10 * step + index))
                larc.step()
        finally:
            torch.set_num_threads(before)
        return memory

    torch.testing.assert_close(train(4), train(1))  # up to the rounding of torch's own kernels


@pytest.mark.parametrize("inner", ["adamw", "rmsprop"])
def test_defaults_and_modes_in_force_when_it_is_built_do_not_matter(inner, cpp_kernels):
    params = layers(torch.float32, ["conv", "vector"])
    larcs = [build(inner, params.values())]
    with torch.device("meta"):
        larcs.append(build(inner, params.values()))
    with torch.inference_mode():
        larcs.append(build(inner, params.values()))
    torch.set_default_dtype(torch.float64)
    try:
        larcs.append(build(inner, params.values()))
    finally:
        torch.set_default_dtype(torch.float32)
    for larc in larcs:
        set_grads(params, 1)
        larc.step()


def test_an_infinite_weight_without_decay_spoils_no_other_weight(kernels):
    weight = torch.nn.Parameter(torch.randn(70, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        weight[3] = -torch.inf
    weight.grad = torch.ones(70)
    LARC(NovoGrad([weight], lr=0.1)).step()
    assert weight.isfinite().sum() == 69


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("worker", [{"fused": True}, {"foreach": True}, {"foreach": False}, {}], ids=str)
def test_an_infinite_weight_of_sgd_without_decay_spoils_no_other_weight(worker, momentum, kernels):
    weight = torch.nn.Parameter(torch.randn(70, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        weight[3] = -torch.inf
    weight.grad = torch.ones(70)
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=momentum, **worker)
    larc = LARC(optimizer)
    for _ in range(2):
        larc.step()
    assert weight[3] == -torch.inf
    assert weight.isfinite().sum() == 69


@pytest.mark.parametrize("inner", ["sgd", "novograd", "adamw"])
def test_gradients_with_the_negative_bit(inner, kernels):
    params = [torch.nn.Parameter(torch.ones(4)) for _ in range(2)]
    for p, grad in zip(params, (torch._neg_view(torch.arange(4.0)), -torch.arange(4.0)), strict=True):
        p.grad = grad
        build(inner, [p]).step()
    torch.testing.assert_close(*params)


def test_temporaries_are_as_large_as_the_layers(cpp_kernels):
    """Not as large as their number."""
    params = [torch.nn.Parameter(torch.ones(1)) for _ in range(1000)]
    larc = build("adamw", params)
    for p in params:
        p.grad = torch.ones(1)
    larc.step()
    assert larc._saved.numel() <= 16 * 1000


@pytest.mark.parametrize("inner", ["adamw", "rmsprop"])
def test_a_subclass_of_tensor_keeps_to_its_own_operations(inner, kernels):
    """It may have no memory of its own, as DTensors have none."""
    plain = torch.nn.Parameter(torch.ones(5))
    wrapped = torch.nn.Parameter(TwoTensor(torch.ones(5), torch.ones(5)))
    for step in range(2):
        for p in (plain, wrapped):
            grad = torch.arange(5.0) + step
            p.grad = TwoTensor(grad, grad.clone()) if p is wrapped else grad
            build(inner, [p], trust_coefficient=1e-2).step()
    torch.testing.assert_close(wrapped.detach().a, plain.detach())
