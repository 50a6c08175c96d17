"""The fused CUDA worker in Triton's interpreter, on the CPU; run by test_cuda.py in a process of its own.

Ordinary optimizers are handed this worker where they ask for that of a CPU.
"""

from itertools import permutations

import numpy as np
import optim_db
import pytest
import torch
from optim.novograd.cuda_cases import interpret
from reference import ReferenceNovoGrad
from torch import Tensor
from triton.runtime import interpreter

from lightning_novograd.optim import NovoGrad
from lightning_novograd.optim.novograd import cuda
from lightning_novograd.optim.novograd.layers import Layers
from lightning_novograd.optim.novograd.options import Options

# numpy tells of the divisions by zero that the kernels make and then discard
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def worker(monkeypatch):
    interpret(monkeypatch)
    monkeypatch.setattr(interpreter, "_convert_float", rounded_to_nearest)


def rounded_to_nearest(values: np.ndarray, source, target, rounding_mode) -> np.ndarray:
    """float32 to bfloat16 and back as a GPU does it; the interpreter itself truncates."""
    values = np.ascontiguousarray(values)
    if str(target) == "bf16":
        return torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16).float().numpy()


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


def assert_equal_to_the_reference(optimizer, params, reference, where):
    for index, param in enumerate(params):
        state = optimizer.state.get(param)
        optim_db.assert_close(param, reference.params[index], param.dtype, f"weight of {where} {index}")
        if not state:
            continue
        optim_db.assert_close(state["exp_avg"], reference.exp_avgs[index], param.dtype, f"moment of {where} {index}")
        for key, expected in (("exp_avg_sq", reference.exp_avg_sqs), ("max_exp_avg_sq", reference.max_exp_avg_sqs)):
            if key in state:
                assert state[key].item() == pytest.approx(expected[index], rel=3e-6), f"{key} of {where} {index}"


@pytest.mark.parametrize("options", optim_db.OPTIONS.values(), ids=optim_db.OPTIONS)
@pytest.mark.parametrize("dtype", [*optim_db.DTYPES.values(), torch.complex64], ids=str)
def test_the_table_of_inputs(options, dtype, monkeypatch):
    monkeypatch.setattr(cuda, "CHUNK", 1 << 16)
    monkeypatch.setattr(cuda, "BLOCK", 1 << 15)
    params = optim_db.layers(dtype)
    optimizer, reference = NovoGrad(params.values(), **options), ReferenceNovoGrad(list(params.values()), **options)
    for step in range(optim_db.STEPS):
        optim_db.set_grads(params, step)
        reference.adopt(list(params.values()), optimizer)
        optimizer.step()
        reference.step([param.grad for param in params.values()])
        assert_equal_to_the_reference(optimizer, params.values(), reference, f"layer after step {step}")


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"luc": True, "weight_decay": 0.1}, {"lr": 1}], ids=str)
@pytest.mark.parametrize("dtype", optim_db.DTYPES.values(), ids=str)
def test_chunks_and_layouts(options, dtype):
    params = layers(dtype)
    optimizer, reference = NovoGrad(params, **options), ReferenceNovoGrad(params, **options)
    for step in range(3):
        grads = [grad_like(p) for p in params]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone(memory_format=torch.preserve_format)
        reference.adopt(params, optimizer)
        optimizer.step()
        reference.step(grads)
        assert all(torch.equal(p.grad, g) for p, g in zip(params, grads, strict=True)), "p.grad was written"
        assert_equal_to_the_reference(optimizer, params, reference, f"layer after step {step}")


def test_the_kernels_take_all_dense_layers():
    params = layers()
    optimizer = NovoGrad(params)
    for param in params:
        param.grad = grad_like(param)
    optimizer.step()
    (plan,) = cuda._plans.values()
    assert [group.indices for group in plan.groups] == [list(range(len(params) - 1))]
    assert plan.others == [len(params) - 1]


def test_mixed_dtypes_and_layouts_of_gradients_in_one_group():
    params = layers(torch.float32) + layers(torch.float16) + layers(torch.float64)
    params += [torch.randn(40, 30), torch.randn(8, 1, 1)]
    optimizer, reference = NovoGrad(params), ReferenceNovoGrad(params)
    for step in range(2):
        reference.adopt(params, optimizer)
        for param in params:
            param.grad = grad_like(param)
        params[-2].grad = torch.randn(30, 40).t()  # laid out otherwise than the parameter
        params[-1].grad = torch.randn(1, 1, 8).permute(2, 0, 1)  # only in dimensions of one element
        optimizer.step()
        reference.step([p.grad for p in params])
        assert_equal_to_the_reference(optimizer, params, reference, f"layer after step {step}")


@pytest.mark.parametrize("options", [{"amsgrad": True}, {"luc": True, "weight_decay": 0.1}], ids=str)
@pytest.mark.parametrize("pair", list(permutations(optim_db.DTYPES.values(), 2)), ids=str)
def test_moments_of_another_dtype_than_their_weights(pair, options):
    before, after = pair
    params = [torch.nn.Parameter(param) for param in layers(before)]
    optimizer, reference = NovoGrad(params, **options), ReferenceNovoGrad(params, **options)
    for step in range(3):
        if step == 1:
            for param in params:
                param.grad = None
                param.data = param.data.to(after)
        for param in params:
            param.grad = grad_like(param)
        reference.adopt(params, optimizer)
        optimizer.step()
        reference.step([p.grad for p in params])
    coarser = max(before, torch.float32 if after != torch.float64 else after, key=lambda dtype: torch.finfo(dtype).eps)
    for index, param in enumerate(params):
        state, terms = optimizer.state[param], reference.exp_avg_terms[index]
        optim_db.assert_close(param, reference.params[index], after, f"weight {index}", reference.param_terms[index])
        optim_db.assert_close(state["exp_avg"], reference.exp_avgs[index], coarser, f"moment {index}", terms)
        assert state["exp_avg"].dtype == before


def test_layers_frozen_and_unfrozen():
    params = layers()
    optimizer, reference = NovoGrad(params, lr=0.05), ReferenceNovoGrad(params, lr=0.05)
    for frozen in ([], [0, 3], [3], range(len(params)), []):
        for i, param in enumerate(params):
            param.grad = None if i in frozen else grad_like(param)
        optimizer.step()
        reference.step([p.grad for p in params])
    assert_equal_to_the_reference(optimizer, params, reference, "layer")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("luc", [False, True])
def test_a_bad_gradient_stays_in_its_layer(bad, luc):
    clean, spoiled = layers(), layers()
    for params in (clean, spoiled):
        optimizer = NovoGrad(params, lr=0.05, luc=luc, amsgrad=True)
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
    optimizer = NovoGrad(params, lr=0.05, eps=eps)
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_luc_without_eps_leaves_a_layer_without_momentum_alone(weight):
    params = [torch.full_like(param, weight) for param in layers()]
    optimizer = NovoGrad(params, lr=0.05, luc=True, luc_eps=0.0)
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert all((param == weight).all() for param in params)


def test_equal_input_gives_equal_bits():
    results = []
    for _ in range(2):
        params = layers()
        optimizer = NovoGrad(params, lr=0.05, luc=True)
        for param in params:
            param.grad = grad_like(param)
        optimizer.step()
        results.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_norms_of_a_huge_float16_gradient():
    param = torch.zeros(3000, dtype=torch.float16)
    param.grad = torch.full_like(param, 1000.0)
    optimizer = NovoGrad([param], lr=1.0)
    optimizer.step()
    assert optimizer.state[param]["exp_avg_sq"].item() == pytest.approx(3e9)
    torch.testing.assert_close(param, torch.full_like(param, -(3000**-0.5)))


def test_writes_are_seen_by_autograd():
    param = torch.ones(3, requires_grad=True)
    param.grad = torch.ones(3)
    loss = (param * param).sum()
    NovoGrad([param]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def call_worker(params, grads, state, *, luc=False, norms=None, grad_scale=None, found_inf=None):
    """One step as `novograd` calls a worker; `state` is (exp_avgs, exp_avg_sqs)."""
    options = Options(
        amsgrad=False, grad_averaging=False, luc=luc, luc_trust=0.02, luc_eps=1e-8, beta1=0.95, beta2=0.5, lr=0.05,
        weight_decay=0.1, eps=1e-8, maximize=False, capturable=False, differentiable=False,
    )  # fmt: skip
    cuda.fused_cuda_novograd(Layers(params, grads, *state, [], norms), options, grad_scale, found_inf)


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


def test_memory_between_the_elements_of_a_layer_is_left_alone():
    """Parameter, gradient and moment laid out alike, but with holes: not one stretch of memory."""
    whole = [torch.ones(6, 4) for _ in range(3)]
    param, grad, moment = (t[:, :2] for t in whole)
    call_worker([param], [grad], ([moment], [torch.zeros(())]))
    assert (whole[0][:, :2] != 1).all()
    assert (whole[0][:, 2:] == 1).all()
    assert (whole[2][:, 2:] == 1).all()


def test_weight_decay_of_zero_does_not_touch_infinite_weights():
    """0 * inf is not a number."""
    for luc in (False, True):
        params = layers()[:5]
        optimizer = NovoGrad(params, lr=0.05, luc=luc)
        for _ in range(2):
            for param in params:
                if param.numel():
                    param.view(-1)[-1] = torch.inf
                param.grad = grad_like(param)
            optimizer.step()
        assert all(optimizer.state[param]["exp_avg"].isfinite().all() for param in params)
        assert all(param.isinf().sum() == min(1, param.numel()) and not param.isnan().any() for param in params)


@pytest.mark.parametrize("given_norms", [False, True])
@pytest.mark.parametrize("luc", [False, True])
def test_a_gradient_of_zeros_without_memory_is_one_of_zeros(luc, given_norms):
    """As torch makes it in forward-mode differentiation: its address is 0, which the kernels must not read."""
    pairs = [layers()[:5] for _ in range(2)]
    states = [fresh_state(params) for params in pairs]
    for step in range(2):
        for params, state, zeros in zip(pairs, states, (torch.zeros, torch._efficientzerotensor), strict=True):
            torch.manual_seed(step)
            grads = [grad_like(param) for param in params]
            grads[4 * step] = zeros(params[4 * step].shape)
            norms = [grad.square().sum() for grad in grads] if given_norms else None
            call_worker(params, grads, state, luc=luc, norms=norms)
    for param, expected in zip(*pairs, strict=True):
        assert torch.equal(param, expected)
