"""LARC where something is zero or infinite: the formulas in float64, limits written out, against every worker."""

import math
from itertools import product

import pytest
import torch
from optim_db import WORKERS, assert_close

from lightning_novograd.optim import NovoGrad
from lightning_novograd.optim.larc import LARC
from lightning_novograd.optim.larc.factors import larc_options
from lightning_novograd.optim.larc.options import OPTIONS

pytestmark = pytest.mark.usefixtures("kernels")  # each test with and without the C++ kernels

SGD, AdamW, RMSprop = torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop
INNER = {
    "sgd-gradient": ("gradient", lambda p, **o: SGD(p, momentum=0.9, weight_decay=0.1, **o)),
    "sgd-plain-gradient": ("gradient", lambda p, **o: SGD(p, weight_decay=0.1, **o)),
    "sgd-nesterov-gradient": ("gradient", lambda p, **o: SGD(p, momentum=0.9, nesterov=True, **o)),
    "sgd-update": ("update", lambda p, **o: SGD(p, momentum=0.9, weight_decay=0.1, **o)),
    "novograd-update": ("update", lambda p, **o: NovoGrad(p, weight_decay=0.1, **o)),
    "novograd-luc-update": ("update", lambda p, **o: NovoGrad(p, luc=True, **o)),
    "adamw-update": ("update", AdamW),
    "rmsprop-update": ("update", lambda p, fused=None, **o: RMSprop(p, momentum=0.9, **o)),
}
# RMSprop has no fused worker, and torch's fused SGD cannot take up a layer whose first gradient comes late
TABLE = [
    (inner, worker)
    for inner, worker in product(INNER, WORKERS)
    if worker != "fused" or inner.startswith(("novograd", "adamw"))
]
KINDS = {"ordinary": (1.0, 1.0), "zero weights": (0.0, 1.0), "zero gradient": (1.0, 0.0), "both": (0.0, 0.0)}
CORNERS = list(product([0.0, 0.1], [0.0, 0.05], [0.0, 1e-8], [True, False], [0.0, 1e-3]))


def factor_of(target, weight_norm, norm, group, clip, trust, eps, min_update):
    """Of docs/larc.md; `norm` is that of the gradient or of the step."""
    lr = group["lr"]
    if norm == 0:
        return 1.0
    if weight_norm == 0:
        ratio = min_update or 1.0
    else:
        if target == "gradient":
            length, lengths = norm + group["weight_decay"] * weight_norm + eps, lr if clip else 1.0
            bound, length = trust * weight_norm, lengths * length
        else:
            bound, length = trust * weight_norm * (1.0 if clip else lr), norm + lr * eps
        ratio = 0.0 if bound == 0 else math.inf if length == 0 else bound / length
    return min(max(ratio, min_update), 1.0) if clip else max(ratio, min_update)


def layers(dtype):
    generator = torch.Generator().manual_seed(0)
    params, grads = {}, {}
    for kind, (weight, grad) in KINDS.items():
        normal = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
        params[kind] = torch.nn.Parameter((weight * normal[0]).to(dtype))
        grads[kind] = (grad * normal[1]).to(dtype)
    return params, grads


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("inner", "worker"), TABLE)
def test_corners_follow_the_formulas(inner, worker, dtype):
    target, build = INNER[inner]
    for lr, trust, eps, clip, min_update in CORNERS:
        params, grads = layers(dtype)
        exact = {kind: torch.nn.Parameter(p.detach().to(torch.float64, copy=True)) for kind, p in params.items()}
        optimizer = build(params.values(), lr=lr, **WORKERS[worker])
        larc = LARC(optimizer, trust_coefficient=trust, clip=clip, eps=eps, min_update=min_update, target=target)
        bare = build(exact.values(), lr=lr, foreach=False)
        group = dict(bare.param_groups[0])
        if target == "gradient":
            bare.param_groups[0]["weight_decay"] = 0.0
        for step in range(2):  # the second step has momentum
            where = f"step {step}, lr {lr}, trust {trust}, eps {eps}, clip {clip}, min_update {min_update}"
            before = {kind: p.detach().clone() for kind, p in exact.items()}
            norms = {kind: p.norm().item() for kind, p in before.items()}
            expected = {}
            for kind, grad in grads.items():
                params[kind].grad, exact[kind].grad = grad.clone(), grad.double()
                if target == "gradient":
                    g = exact[kind].grad
                    f = expected[kind] = factor_of(
                        target, norms[kind], g.norm().item(), group, clip, trust, eps, min_update
                    )
                    exact[kind].grad = f * (g + group["weight_decay"] * before[kind]) if g.any() else g
            larc.step()
            bare.step()
            found = {p: f for ps, fs in larc.factors for p, f in zip(ps, fs, strict=True)}
            for kind, p in params.items():
                if target == "update":
                    change = exact[kind].detach() - before[kind]
                    f = factor_of(target, norms[kind], change.norm().item(), group, clip, trust, eps, min_update)
                    expected[kind] = f
                    exact[kind].data = before[kind] + f * change
                terms = before[kind].abs().amax() + (exact[kind].detach() - before[kind]).abs().amax()
                # a lengthened step has the rounding of the weights lengthened with it
                terms = terms * max(1.0, expected[kind])
                assert_close(p, exact[kind].detach(), dtype, f"{kind}, {where}", terms, step + 1)
                assert found[p].isfinite(), f"{kind}, {where}"
            for state, other in (
                (larc.state[p], bare.state[e]) for p, e in zip(params.values(), exact.values(), strict=True)
            ):
                for key in ("momentum_buffer", "exp_avg"):
                    if key in state and state[key] is not None:
                        moment = other[key].double()
                        assert_close(state[key], moment, dtype, f"{key}, {where}", moment.abs().amax() + 1, step + 1)


# Whether the square is 0 in float32, on both sides of half of its smallest number
SQUARES = {1e-25: True, 2.6e-23: True, 2.7e-23: False, 1e-19: False}
# Shorter than a vector of the C++ loops, whole vectors, with a rest, more than a chunk, and more than a dot product
SIZES = [1, 31, 32, 63, 64, 100, 128, 4096 + 5, (1 << 16) + 5]


def stepped(inner, worker, size, weight, grad):
    """A layer of equal weights and gradients after a step, and its factor."""
    target, build = INNER[inner]
    param = torch.nn.Parameter(torch.full((size,), weight))
    param.grad = torch.full((size,), grad)
    larc = LARC(build([param], lr=0.1, **WORKERS[worker]), trust_coefficient=1e-3, target=target)
    larc.step()
    [(_, factor)] = larc.factors
    return param.detach(), factor.item()


# luc allows such weights no step that would need a factor
@pytest.mark.parametrize(("inner", "worker"), [case for case in TABLE if "luc" not in case[0]])
def test_weights_are_zero_at_any_size_where_their_squares_are(inner, worker):
    for (weight, zero), size in product(SQUARES.items(), SIZES):
        _, factor = stepped(inner, worker, size, weight, 1.0)
        assert (factor == 1) == zero, f"{size} weights of {weight}: {factor}"


@pytest.mark.parametrize(
    ("inner", "worker"), [case for case in TABLE if case[0].endswith(("sgd-gradient", "plain-gradient"))]
)
def test_a_gradient_is_zero_at_any_size_where_its_squares_are(inner, worker):
    for (grad, zero), size in product(SQUARES.items(), SIZES):
        param, factor = stepped(inner, worker, size, 1.0, grad)
        assert (factor == 1) == zero, f"{size} gradients of {grad}: {factor}"
        assert (param == 1).all() == zero, f"{size} gradients of {grad}: a zero gradient is not decayed"


def test_an_lr_on_the_cpu_is_a_number_for_layers_elsewhere():
    group = {"lr": torch.tensor([0.25]), **dict.fromkeys(OPTIONS, 0.0)}
    assert larc_options(group, torch.empty((), device="meta"))["lr"] == 0.25
    assert isinstance(larc_options(group, torch.empty((), device="meta"))["lr"], float)
    assert isinstance(larc_options(group, torch.empty(()))["lr"], torch.Tensor)


# One infinite weight; finite weights whose sum of squares exceeds float32
INFINITE = {"one": [1.0, -math.inf, *[0.5] * 68], "too large": [1e20] * 70}


@pytest.mark.parametrize("min_update", [0.0, 2.0])
@pytest.mark.parametrize("clip", [True, False], ids=["clip", "scale"])
@pytest.mark.parametrize("weights", INFINITE.values(), ids=INFINITE)
@pytest.mark.parametrize(("inner", "worker"), TABLE)
def test_weights_of_infinite_norm_bound_no_step(inner, worker, weights, clip, min_update):
    target, build = INNER[inner]
    params = [torch.nn.Parameter(torch.tensor(weights)) for _ in range(2)]
    for param in params:
        param.grad = torch.linspace(1, 2, 70)
    larc = LARC(build(params[:1], lr=0.1, **WORKERS[worker]), clip=clip, min_update=min_update, target=target)
    larc.step()
    build(params[1:], lr=0.1, **WORKERS[worker]).step()
    [(_, factor)] = larc.factors
    assert factor == 1
    torch.testing.assert_close(*params, equal_nan=True)


# torch's own fused AdamW refuses it
@pytest.mark.parametrize(("inner", "worker"), [case for case in TABLE if case != ("adamw-update", "fused")])
def test_a_gradient_of_zeros_without_memory_is_one_of_zeros(inner, worker):
    """As torch makes it in forward-mode differentiation."""
    target, build = INNER[inner]
    pairs = [list(layers(torch.float32)[0].values()) for _ in range(2)]
    for params, zeros in zip(pairs, (torch.zeros, torch._efficientzerotensor), strict=True):
        larc = LARC(build(params, lr=0.1, **WORKERS[worker]), target=target)
        for step in range(3):
            for index, param in enumerate(params):
                param.grad = zeros(param.shape) if (index + step) % 2 else torch.ones_like(param)
            larc.step()
    torch.testing.assert_close(*pairs)
