"""The fused CUDA worker in Triton's interpreter, on the CPU; run by test_fused_cuda.py in a process of its own.

`foreach=True` of an ordinary NovoGrad is redirected to the worker, so the optimizer around it is the real one.
"""

from importlib import import_module

import pytest
import torch
from reference import ReferenceNovoGrad
from torch import Tensor

from lightning_novograd.optim import NovoGrad, fused_cuda

# Largest difference to the reference, relative to the largest weight, after STEPS steps. The interpreter truncates to
# bfloat16 where a GPU rounds to the nearest: each step may lose one unit, at most 2 ** -7 of the weight.
STEPS = 3
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: STEPS * 2.0**-7, torch.float64: 1e-12}

# numpy tells of the divisions by zero that the kernels make and then discard
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

OPTIONS = {
    "defaults": {},
    "weight_decay": {"weight_decay": 0.1},
    "grad_averaging": {"grad_averaging": True, "weight_decay": 0.1},
    "amsgrad": {"amsgrad": True},
    "luc": {"luc": True, "luc_trust": 0.02, "weight_decay": 0.1},
    "luc-amsgrad-averaging": {"luc": True, "amsgrad": True, "grad_averaging": True},
    "maximize": {"maximize": True, "weight_decay": 0.1},
    "beta2=0": {"betas": (0.9, 0.0)},
    "betas=0": {"betas": (0.0, 0.0)},
    "lr-tensor": {"lr": torch.tensor(0.05)},
    "lr-tensor-luc": {"lr": torch.tensor(0.05), "luc": True},
    "lr=0": {"lr": 0.0},
    "lr-integer": {"lr": 1},
    "eps": {"eps": 0.5},
    "eps=0": {"eps": 0.0},
}


@pytest.fixture(autouse=True)
def worker(monkeypatch):
    # by its full name: the package's `novograd` is the function
    module = import_module("lightning_novograd.optim.novograd")
    monkeypatch.setattr(module, "_multi_tensor_novograd", fused_cuda._fused_cuda_novograd)
    monkeypatch.setattr(fused_cuda, "_plans", type(fused_cuda._plans)())
    monkeypatch.setattr(fused_cuda, "CHUNK", 512)
    monkeypatch.setattr(fused_cuda, "BLOCK", 256)


def layers(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """One layer of each kind that the kernels meet, and one that they have to leave to foreach."""
    torch.manual_seed(0)
    flat = torch.randn(2048).to(dtype)
    return [
        torch.randn(()).to(dtype),
        torch.randn(1, 3).to(dtype),
        torch.empty(0, 4, dtype=dtype),
        torch.randn(2, 512).to(dtype),  # whole chunks only
        torch.randn(2 * 512 + 5).to(dtype),
        torch.randn(20, 30).to(dtype).t(),  # dense, not contiguous
        torch.randn(2, 3, 8, 8).to(dtype).to(memory_format=torch.channels_last),
        flat[1:1025],  # not aligned to 16 bytes
        flat[1025:].view(-1, 93)[:, :50],  # not dense
    ]


def grad_like(param: Tensor) -> Tensor:
    return torch.empty_like(param).copy_(torch.randn(param.shape))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    if not expected.numel():
        return 0.0
    return ((actual.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_the_reference(options, dtype):
    params = layers(dtype)
    options = {"lr": 0.05, **options}
    optimizer, reference = NovoGrad(params, foreach=True, **options), ReferenceNovoGrad(params, **options)
    for _ in range(STEPS):
        grads = [grad_like(p) for p in params]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone(memory_format=torch.preserve_format)
        optimizer.step()
        reference.step(grads)
        assert all(torch.equal(p.grad, g) for p, g in zip(params, grads, strict=True)), "p.grad was written"
    for i, (param, expected) in enumerate(zip(params, reference.params, strict=True)):
        state = optimizer.state[param]
        assert relative_error(param, expected) <= TOLERANCE[dtype], f"layer {i}"
        assert relative_error(state["exp_avg"], reference.exp_avgs[i]) <= TOLERANCE[dtype], f"layer {i}"
        assert state["exp_avg_sq"].item() == pytest.approx(reference.exp_avg_sqs[i], rel=1e-6), f"layer {i}"
        if optimizer.defaults["amsgrad"]:
            assert state["max_exp_avg_sq"].item() == pytest.approx(reference.max_exp_avg_sqs[i], rel=1e-6)


def test_the_kernels_take_all_dense_layers():
    params = layers()
    optimizer = NovoGrad(params, foreach=True)
    for param in params:
        param.grad = grad_like(param)
    optimizer.step()
    (plan,) = fused_cuda._plans.values()
    assert [group.indices for group in plan.groups] == [list(range(len(params) - 1))]
    assert plan.others == [len(params) - 1]


def test_mixed_dtypes_and_layouts_of_gradients_in_one_group():
    params = layers(torch.float32) + layers(torch.float16) + layers(torch.float64)
    params += [torch.randn(40, 30), torch.randn(8, 1, 1)]
    optimizer, reference = NovoGrad(params, foreach=True), ReferenceNovoGrad(params)
    for _ in range(2):
        for param in params:
            param.grad = grad_like(param)
        params[-2].grad = torch.randn(30, 40).t()  # laid out otherwise than the parameter
        params[-1].grad = torch.randn(1, 1, 8).permute(2, 0, 1)  # only in dimensions of one element
        optimizer.step()
        reference.step([p.grad for p in params])
    for param, expected in zip(params, reference.params, strict=True):
        assert relative_error(param, expected) <= TOLERANCE[param.dtype]


def test_layers_frozen_and_unfrozen():
    params = layers()
    optimizer, reference = NovoGrad(params, lr=0.05, foreach=True), ReferenceNovoGrad(params, lr=0.05)
    for frozen in ([], [0, 3], [3], range(len(params)), []):
        for i, param in enumerate(params):
            param.grad = None if i in frozen else grad_like(param)
        optimizer.step()
        reference.step([p.grad for p in params])
    for param, expected in zip(params, reference.params, strict=True):
        assert relative_error(param, expected) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("luc", [False, True])
def test_a_bad_gradient_stays_in_its_layer(bad, luc):
    clean, spoiled = layers(), layers()
    for params in (clean, spoiled):
        optimizer = NovoGrad(params, lr=0.05, luc=luc, amsgrad=True, foreach=True)
        for step in range(3):
            torch.manual_seed(step)
            for param in params:
                param.grad = grad_like(param)
            if params is spoiled and step == 1:
                params[3].grad[0, 7] = bad
            optimizer.step()
    for i, (a, b) in enumerate(zip(clean, spoiled, strict=True)):
        assert torch.equal(a, b) == (i != 3), f"layer {i}"


@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_zero_gradients_move_nothing(eps):
    params = layers()
    before = [p.clone() for p in params]
    optimizer = NovoGrad(params, lr=0.05, eps=eps, foreach=True)
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))


def test_equal_input_gives_equal_bits():
    results = []
    for _ in range(2):
        params = layers()
        optimizer = NovoGrad(params, lr=0.05, luc=True, foreach=True)
        for param in params:
            param.grad = grad_like(param)
        optimizer.step()
        results.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_norms_of_a_huge_float16_gradient():
    param = torch.zeros(3000, dtype=torch.float16)
    param.grad = torch.full_like(param, 1000.0)
    optimizer = NovoGrad([param], lr=1.0, foreach=True)
    optimizer.step()
    assert optimizer.state[param]["exp_avg_sq"].item() == pytest.approx(3e9)
    torch.testing.assert_close(param, torch.full_like(param, -(3000**-0.5)))


def test_writes_are_seen_by_autograd():
    param = torch.ones(3, requires_grad=True)
    param.grad = torch.ones(3)
    loss = (param * param).sum()
    NovoGrad([param], foreach=True).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def call_worker(params, grads, state, *, luc=False, norms=None, grad_scale=None, found_inf=None):
    """One step as `novograd` calls a worker; `state` is (exp_avgs, exp_avg_sqs)."""
    fused_cuda._fused_cuda_novograd(
        params, grads, *state, [], norms, None, grad_scale, found_inf,
        amsgrad=False, grad_averaging=False, luc=luc, luc_trust=0.02, luc_eps=1e-8, beta1=0.95, beta2=0.5, lr=0.05,
        weight_decay=0.1, eps=1e-8, maximize=False, capturable=False, differentiable=False,
    )  # fmt: skip


def fresh_state(params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    dtype = torch.float64 if params[0].dtype == torch.float64 else torch.float32
    return [torch.zeros_like(p) for p in params], [torch.zeros((), dtype=dtype) for _ in params]


@pytest.mark.parametrize("given_norms", [False, True])
@pytest.mark.parametrize("luc", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_grad_scale_divides_the_gradients(dtype, luc, given_norms):
    plain, scaled = layers(dtype), layers(dtype)
    plain_state, scaled_state = fresh_state(plain), fresh_state(scaled)
    for _ in range(2):
        grads = [grad_like(p) for p in plain]
        scaled_grads = [g * 64 for g in grads]
        norms = [g.float().square().sum() for g in scaled_grads] if given_norms else None
        call_worker(plain, grads, plain_state, luc=luc)
        call_worker(scaled, scaled_grads, scaled_state, luc=luc, norms=norms, grad_scale=torch.tensor(64.0))
    for a, b in zip(plain, scaled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5 if dtype != torch.float16 else 1e-3, atol=1e-6)


@pytest.mark.parametrize("luc", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_found_inf_changes_nothing(dtype, luc):
    params = layers(dtype)
    state = fresh_state(params)
    call_worker(params, [grad_like(p) for p in params], state, luc=luc)
    before = [t.clone() for t in [*params, *state[0], *state[1]]]
    overflowed = [torch.full_like(p, torch.inf) for p in params]
    call_worker(params, overflowed, state, luc=luc, grad_scale=torch.tensor(2.0), found_inf=torch.tensor([1.0]))
    assert all(torch.equal(a, b) for a, b in zip(before, [*params, *state[0], *state[1]], strict=True))
    call_worker(params, [grad_like(p) for p in params], state, luc=luc, found_inf=torch.tensor([0.0]))
    assert all(not torch.equal(a, b) for a, b in zip(before, params, strict=False) if a.numel())


def test_given_norms_replace_the_layers_own():
    param, grad = torch.zeros(5), torch.ones(5)
    call_worker([param], [grad], fresh_state([param]), norms=[torch.tensor(400.0)])
    torch.testing.assert_close(param, torch.full((5,), -0.05 / 20))
