"""BatchNorm against torch's: outputs, gradients, running statistics; and where torch's own is taken."""

import copy

import pytest
import torch
from torch import nn

from lightning_novograd.recipes.common.batch_norm import BatchNorm, _Normalized


def make_pair(channels: int, **options) -> tuple[BatchNorm, nn.BatchNorm1d]:
    ours, theirs = BatchNorm(channels, eps=1e-3, **options), nn.BatchNorm1d(channels, eps=1e-3, **options)
    for norm in (ours, theirs):
        if norm.affine:
            norm.weight.data.copy_(torch.linspace(0.5, 2.0, channels))
            norm.bias.data.copy_(torch.linspace(-1.0, 1.0, channels))
    return ours, theirs


def run(norm: nn.Module, x_BCT: torch.Tensor, grad_BCT: torch.Tensor) -> dict[str, torch.Tensor]:
    x_BCT = x_BCT.clone().requires_grad_()
    y_BCT = norm(x_BCT)
    y_BCT.backward(grad_BCT)
    return {
        "y": y_BCT,
        "x": x_BCT.grad,
        "weight": norm.weight.grad,
        "bias": norm.bias.grad,
        **dict(norm.named_buffers()),
    }


def is_ours(norm: BatchNorm, x_BCT: torch.Tensor) -> bool:
    grad_fn = norm(x_BCT.requires_grad_()).grad_fn
    return type(grad_fn).__name__ == _Normalized.__name__ + "Backward"


@pytest.mark.parametrize("shape", [(8, 16, 50), (2, 3, 1), (1, 4, 50), (5, 7, 2)], ids=str)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_it_is_torchs(shape, offset):
    torch.manual_seed(1)
    ours, theirs = make_pair(shape[1])
    x_BCT, grad_BCT = 3.0 * torch.randn(shape) + offset, torch.randn(shape)
    for _ in range(2):
        found, expected = run(ours, x_BCT, grad_BCT), run(theirs, x_BCT, grad_BCT)
    assert found.keys() == expected.keys()
    for name in expected:
        # the gradient of the weight is a sum of as many numbers as the batch has
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("value", [7.0, 1000.3])
def test_a_channel_that_hardly_varies_is_near_zero_as_with_torch(value):
    ours, theirs = (norm.requires_grad_(False) for norm in (BatchNorm(2), nn.BatchNorm1d(2)))
    x_BCT = torch.full((32, 2, 501), value)
    torch.testing.assert_close(ours(x_BCT), theirs(x_BCT), rtol=0, atol=value * 3e-5)


def test_the_gradient_is_that_of_the_formula():
    torch.manual_seed(1)
    norm, _ = make_pair(3)
    x_BCT = torch.randn(4, 3, 6)
    found = run(norm, x_BCT, grad_BCT := torch.randn(4, 3, 6))
    x_BCT = x_BCT.double().requires_grad_()
    mean, var = x_BCT.mean((0, 2), keepdim=True), x_BCT.var((0, 2), unbiased=False, keepdim=True)
    y_BCT = (x_BCT - mean) / (var + norm.eps).sqrt() * norm.weight.double()[:, None] + norm.bias.double()[:, None]
    y_BCT.backward(grad_BCT.double())
    torch.testing.assert_close(found["x"], x_BCT.grad.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "change", "expected"),
    [
        ({}, lambda x: x, True),
        ({"track_running_stats": False}, lambda x: x, True),
        ({"affine": False}, lambda x: x, False),
        ({"momentum": None}, lambda x: x, False),
        ({}, lambda x: x[:, :, 0], False),
        ({}, lambda x: x.transpose(0, 2).contiguous().transpose(0, 2), False),
        ({}, lambda x: x.bfloat16(), False),
    ],
    ids=["plain", "no statistics", "not affine", "cumulative average", "no frames", "strided", "bfloat16"],
)
def test_where_torchs_own_is_taken(options, change, expected):
    torch.manual_seed(1)
    ours, theirs = make_pair(4, **options)
    x = change(torch.randn(6, 4, 5))
    assert is_ours(ours, x.clone()) is expected
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_autocast_and_evaluation_are_torchs():
    ours, theirs = make_pair(4)
    x_BCT = torch.randn(6, 4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_ours(ours, x_BCT.clone())
    assert not is_ours(ours.eval(), x_BCT.clone())
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours(x_BCT), theirs.eval()(x_BCT))


def test_one_value_per_channel_is_refused_as_torch_refuses_it():
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        BatchNorm(4)(torch.randn(1, 4, 1))


def test_what_torch_refuses_moves_no_statistics():
    norm = BatchNorm(4)
    with pytest.raises(RuntimeError, match="running_mean should contain 1 elements not 4"):
        norm(torch.randn(3, 1, 20))
    assert torch.equal(norm.running_mean, torch.zeros(4))


def test_ddp_can_make_it_synchronous():
    norm = BatchNorm(4, eps=1e-3)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(norm))
    assert type(model[0]) is nn.SyncBatchNorm
    assert model[0].weight is norm.weight
    assert model[0].eps == norm.eps
