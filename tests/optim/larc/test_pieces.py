"""However the work is divided, and whatever the layers' layout and dtype: the values are the same."""

import pytest
import torch
from optim.larc.larc_cases import INNER, SGD, assert_same, every_inner, make_params, run, set_grads

from lightning_novograd.optim.larc import LARC

pytestmark = pytest.mark.usefixtures("kernels")  # each test with and without the C++ kernels


def seen(larc):
    params = [p for group in larc.param_groups for p in group["params"]]
    return params, [larc.state[p] for p in params], torch.cat([factors for _, factors in larc.factors])


@pytest.mark.parametrize("cache_size", [1, 20, 1 << 20])
@every_inner
def test_a_cache_sized_piece_at_a_time_and_all_at_once_are_the_same(inner, cache_size, kernels, monkeypatch):
    monkeypatch.setattr("lightning_novograd.optim.larc.pieces.CACHE_SIZE", cache_size)
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
    monkeypatch.setattr("lightning_novograd.optim.larc.pieces.CACHE_SIZE", 1)
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
    for target in ("gradient", "update"):
        monkeypatch.setattr(f"lightning_novograd.optim.larc.{target}.numbers", torch.Tensor.unbind)
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
