"""Depthwise convolutions equal conv1d's however they are evaluated, and shuffled channels mix the groups."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_novograd.recipes.asr.model.convolution import GroupShuffle, convolve


def test_group_shuffle_interleaves_the_groups():
    x = torch.arange(6.0).view(1, 6, 1)
    assert GroupShuffle(2)(x).flatten().tolist() == [0, 3, 1, 4, 2, 5]


# width-1 images with the kernel's own padding give wrong weight gradients from kernel 43 on
DEPTHWISE = [(16, 50, 11), (128, 40, 17), (32, 100, 51), (16, 200, 75), (20, 30, 13), (16, 5, 87), (1, 40, 3)]


@pytest.mark.parametrize(("channels", "frames", "kernel"), DEPTHWISE)
@pytest.mark.parametrize("slice_values", [1 << 20, 1 << 10], ids=["whole", "sliced"])
def test_depthwise_convolution_equals_conv1d(channels, frames, kernel, slice_values, monkeypatch):
    monkeypatch.setattr("lightning_novograd.recipes.asr.model.convolution._SLICE_VALUES", slice_values)
    torch.manual_seed(0)
    conv = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
    x = torch.randn(3, channels, frames, requires_grad=True)
    slope = torch.randn(3, channels, frames)
    output = convolve(conv, x)
    exact_x, exact_weight = (t.detach().double().requires_grad_() for t in (x, conv.weight))
    exact = F.conv1d(exact_x, exact_weight, padding=kernel // 2, groups=channels)
    mine = (output, *torch.autograd.grad(output, (x, conv.weight), slope))
    theirs = (exact, *torch.autograd.grad(exact, (exact_x, exact_weight), slope.double()))
    for a, b in zip(mine, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize(
    ("stride", "dilation", "dtype"), [(2, 1, torch.float32), (1, 2, torch.float32), (1, 1, torch.float64)]
)
def test_other_depthwise_convolutions_are_left_to_torch(stride, dilation, dtype):
    conv = nn.Conv1d(16, 16, 5, stride, 2 * dilation, dilation, groups=16, bias=False, dtype=dtype)
    x = torch.randn(2, 16, 30, dtype=dtype)
    assert torch.equal(convolve(conv, x), conv(x))


def test_autocast_convolves_in_bfloat16():
    conv = nn.Conv1d(16, 16, 5, padding=2, groups=16, bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert convolve(conv, torch.randn(2, 16, 30)).dtype == torch.bfloat16
