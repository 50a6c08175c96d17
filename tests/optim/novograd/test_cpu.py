"""The fused CPU worker keeps clear of the faults of torch's fused SGD kernel, and of extreme scales."""

from types import SimpleNamespace

import pytest
import torch
from optim_db import OPTIONS, STEPS, assert_close, layers, set_grads
from reference import ReferenceNovoGrad

from lightning_novograd.optim import NovoGrad
from lightning_novograd.optim.kernels.cpu import library, torch_sgd
from lightning_novograd.optim.kernels.cpu.build import build
from lightning_novograd.optim.novograd import cpu


@pytest.fixture
def cpp_kernel(built_kernels, monkeypatch):
    """Counts the layers that the C++ kernel took."""
    taken = []

    def counted(params, *args):
        others, factors = built_kernels.novograd_step_.default(params, *args)
        taken.extend(param for index, param in enumerate(params) if index not in others)
        return others, factors

    kernels = SimpleNamespace(novograd_step_=SimpleNamespace(default=counted))
    monkeypatch.setattr(library, "load", lambda: kernels)
    return taken


@pytest.fixture
def kernel_calls(monkeypatch):
    calls = []
    kernel = torch_sgd._kernel

    def counted(params, *args, **kwargs):
        calls.append(params[0])
        kernel(params, *args, **kwargs)

    monkeypatch.setattr(torch_sgd, "_kernel", counted)
    return calls


def one_step(param, grad, **options):
    optimizer = NovoGrad([param], **{"lr": 0.1, **options, "fused": True})
    reference = ReferenceNovoGrad([param], **{"lr": 0.1, **options})
    param.grad = grad
    optimizer.step()
    reference.step([grad])
    assert_close(param, reference.params[0], param.dtype, "weight")
    assert_close(optimizer.state[param]["exp_avg"], reference.exp_avgs[0], param.dtype, "first moment")


def test_contiguous_float32_layers_take_the_kernel(kernel_calls):
    param = torch.nn.Parameter(torch.randn(8, 4))
    one_step(param, torch.randn(8, 4), weight_decay=0.1)
    assert [call is param for call in kernel_calls] == [True]


@pytest.mark.parametrize(
    ("param", "grad"),
    [
        pytest.param(torch.randn(8, 4).t(), torch.randn(4, 8), id="transposed"),
        pytest.param(torch.randn(4, 8), torch.randn(8, 4).t(), id="transposed gradient"),
        pytest.param(torch.randn(4, 8)[:, ::2], torch.randn(4, 4), id="sliced"),
        pytest.param(torch.randn(4, 8), torch.ones(()).expand(4, 8), id="expanded gradient"),
        pytest.param(torch.randn(4, 8).bfloat16(), torch.randn(4, 8).bfloat16(), id="bfloat16"),
        pytest.param(torch.randn(4, 8).half(), torch.randn(4, 8).half(), id="float16"),
        pytest.param(torch.randn(4, 8).double(), torch.randn(4, 8).double(), id="float64"),
    ],
)
def test_what_the_kernel_gets_wrong_it_does_not_get(kernel_calls, param, grad):
    one_step(torch.nn.Parameter(param), grad, weight_decay=0.1)
    assert not kernel_calls


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_without_the_kernel_the_values_are_the_same(options, monkeypatch):
    """As in a torch release that lacks it."""
    monkeypatch.setattr(torch_sgd, "_kernel", None)
    params = layers(torch.float32, ["conv", "vector", "many-rows"])
    optimizer = NovoGrad(params.values(), fused=True, **options)
    reference = ReferenceNovoGrad(list(params.values()), **options)
    for step in range(3):
        set_grads(params, step)
        optimizer.step()
        reference.step([param.grad for param in params.values()])
    for (kind, param), expected in zip(params.items(), reference.params, strict=True):
        assert_close(param, expected, torch.float32, kind)


@pytest.mark.parametrize("scale", [1e-18, 1e-9, 1e-4, 1.0, 1e4, 1e9, 1e18], ids=str)
@pytest.mark.parametrize("options", [{}, {"eps": 0.0}, {"weight_decay": 1e-3, "grad_averaging": True}], ids=str)
def test_gradients_of_any_size(scale, options):
    """The kernel is told 1 - a, where a is 1 / norm: digits must not be lost in it."""
    one_step(torch.nn.Parameter(torch.randn(16, 4)), torch.randn(16, 4) * scale, **options)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cpp_kernel_equals_reference(cpp_kernel, dtype, options):
    params = layers(dtype)
    optimizer = NovoGrad(params.values(), **options)
    reference = ReferenceNovoGrad(list(params.values()), **options)
    for step in range(STEPS):
        set_grads(params, step)
        if dtype == torch.bfloat16:
            reference.adopt(list(params.values()), optimizer)
        optimizer.step()
        reference.step([param.grad for param in params.values()])
        steps = 1 if dtype == torch.bfloat16 else step + 1
        for index, (kind, param) in enumerate(params.items()):
            where, terms = f"weight of {kind} after step {step}", reference.param_terms[index]
            assert_close(param, reference.params[index], dtype, where, terms, steps)
    for index, (kind, param) in enumerate(params.items()):
        state = optimizer.state[param]
        terms = reference.exp_avg_terms[index]
        assert_close(state["exp_avg"], reference.exp_avgs[index], dtype, f"first moment of {kind}", terms, steps)
        expected = torch.tensor(reference.exp_avg_sqs[index], dtype=torch.float64)
        assert_close(state["exp_avg_sq"], expected, torch.float32, f"second moment of {kind}")
    contiguous = {
        id(p) for kind, p in params.items() if p.is_contiguous() and kind not in ("many-rows", "channels-last")
    }
    if dtype != torch.float32:
        assert not cpp_kernel
    else:
        assert {id(param) for param in cpp_kernel} == contiguous


def test_cpp_kernel_unscales_and_takes_given_norms(cpp_kernel):
    params, plain = (layers(torch.float32, ["conv", "vector", "long"]) for _ in range(2))
    optimizer, other = NovoGrad(params.values(), lr=0.1, fused=True), NovoGrad(plain.values(), lr=0.1, foreach=True)
    set_grads(params, 1)
    set_grads(plain, 1)
    for param in params.values():
        param.grad.mul_(8)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(0.0)
    optimizer.step()
    other.step()
    assert len(cpp_kernel) == 3
    for kind, param in params.items():
        torch.testing.assert_close(param, plain[kind])


def test_cpp_kernel_keeps_a_bad_gradient_in_its_layer(cpp_kernel):
    params, clean = (layers(torch.float32, ["conv", "vector", "long", "depthwise"]) for _ in range(2))
    optimizers = [NovoGrad(ps.values(), lr=0.1, amsgrad=True) for ps in (params, clean)]
    for step in range(3):
        set_grads(params, step)
        set_grads(clean, step)
        if step == 1:
            params["vector"].grad[5] = torch.nan
        for optimizer in optimizers:
            optimizer.step()
    assert not params["vector"].isfinite().any()
    assert optimizers[0].state[params["vector"]]["max_exp_avg_sq"].isnan()
    for kind in ("conv", "long", "depthwise"):
        assert torch.equal(params[kind], clean[kind])


def test_cpp_kernel_gives_the_same_bits_with_any_number_of_threads(cpp_kernel):
    def train(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            params = layers(torch.float32)
            optimizer = NovoGrad(params.values(), lr=0.1)
            for step in range(3):
                set_grads(params, step)
                optimizer.step()
        finally:
            torch.set_num_threads(before)
        return params

    one, three = train(1), train(3)
    for kind in one:
        assert kind == "many-rows" or torch.equal(one[kind], three[kind]), kind


def test_without_a_compiler_building_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("NOVOGRAD_KERNEL_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(RuntimeError, match="false could not build"):
        build()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cpp", [False, True], ids=["torch", "cpp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_version_counters_advance(request, dtype, amsgrad, cpp):
    """So that autograd notices when a weight that a graph still needs was changed."""
    if cpp:
        request.getfixturevalue("cpp_kernel")
    param = torch.nn.Parameter(torch.ones(3, dtype=dtype))
    optimizer = NovoGrad([param], amsgrad=amsgrad, fused=True)
    param.grad = torch.ones(3, dtype=dtype)
    optimizer.step()
    tensors = [param, *optimizer.state[param].values()]
    before = [tensor._version for tensor in tensors]
    graph = (param.float() ** 2).sum() if dtype == torch.float32 else (param * param).sum()
    optimizer.step()
    assert all(tensor._version > version for tensor, version in zip(tensors, before, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        graph.backward()


@pytest.mark.parametrize("cpp", [False, True], ids=["torch", "cpp"])
def test_a_moment_of_another_shape_is_an_error(request, cpp):
    """Kernels that trusted the moment's size would read and write past its end."""
    if cpp:
        request.getfixturevalue("cpp_kernel")
    param = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = NovoGrad([param], fused=True)
    param.grad = torch.ones(3, 4)
    optimizer.step()
    param.data = torch.ones(3, 4000)
    param.grad = torch.ones(3, 4000)
    with pytest.raises(RuntimeError, match="must match the size of tensor"):
        optimizer.step()


def test_half_precision_is_widened_a_chunk_at_a_time(monkeypatch):
    monkeypatch.setattr(cpu, "_CHUNK", 10)
    generator = torch.Generator().manual_seed(0)
    values, grad = (torch.randn(7, 9, generator=generator).bfloat16() for _ in range(2))
    one_step(torch.nn.Parameter(values), grad, weight_decay=0.1)


def test_the_default_on_cpu_is_fused(kernel_calls):
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    NovoGrad([param]).step()
    assert len(kernel_calls) == 1
    for refused in ({"foreach": True}, {"foreach": False}, {"fused": False}, {"differentiable": True}):
        leaf = torch.nn.Parameter(torch.ones(3))
        leaf = leaf.clone() if "differentiable" in refused else leaf
        if "differentiable" in refused:
            leaf.retain_grad()
        leaf.grad = torch.ones(3)
        NovoGrad([leaf], **refused).step()
    assert len(kernel_calls) == 1


def test_no_copy_of_a_layer_is_made(monkeypatch):
    """At most 0.1 extra byte per parameter in a step: counted as torch's allocator sees it."""
    params = [torch.nn.Parameter(torch.randn(300, 1000)), torch.nn.Parameter(torch.randn(1000))]
    optimizer = NovoGrad(params, fused=True, weight_decay=0.1)
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer.step()
    with torch.profiler.profile(profile_memory=True) as profile:
        optimizer.step()
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.key_averages())
    assert 0 < allocated < 0.1 * sum(param.numel() for param in params)


@pytest.mark.parametrize("size", [1e-26, 1e-42, 1e20], ids=str)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_squares_beyond_float32_are_those_of_the_reference(kernels, size, amsgrad):
    """The second moment that is stored, 0 or infinity, is the one that divides."""
    weights, results = torch.randn(100, generator=torch.Generator().manual_seed(0)), []
    for fused in (True, False):
        param = torch.nn.Parameter(weights.clone())
        optimizer = NovoGrad([param], lr=0.1, eps=0.0, amsgrad=amsgrad, fused=fused, foreach=False)
        for _ in range(2):
            param.grad = size * torch.arange(1.0, 101.0)
            optimizer.step()
        results.append(param)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("luc", [False, True])
@pytest.mark.parametrize(("grad", "zero"), [(1e-25, True), (2.6e-23, True), (2.7e-23, False)])
def test_a_gradient_is_zero_at_any_size_where_its_squares_are_zero_in_float32(grad, zero, luc, kernels):
    for size in (1, 31, 63, 64, 100, 128, 4096 + 5):
        param = torch.nn.Parameter(torch.ones(size))
        param.grad = torch.full((size,), grad)
        optimizer = NovoGrad([param], luc=luc)
        optimizer.step()
        assert (optimizer.state[param]["exp_avg_sq"] == 0) == zero, size
