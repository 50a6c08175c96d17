"""Depthwise convolutions equal conv1d's however they are evaluated, and shuffled channels mix the groups."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_novograd.recipes.asr.model import convolution
from lightning_novograd.recipes.asr.model.convolution import (
    INITIALIZERS,
    Frames,
    GroupShuffle,
    MaskedConv1d,
    conv_lengths,
    convolve,
    initialize_convolutions,
    padded_conv1d,
)
from lightning_novograd.recipes.asr.model.decoder import ConvDecoder, DecoderConfig
from lightning_novograd.recipes.asr.model.encoder import ConvEncoder, EncoderConfig, plan_layers


def test_group_shuffle_interleaves_the_groups():
    x = torch.arange(6.0).view(1, 6, 1)
    assert GroupShuffle(2)(x).flatten().tolist() == [0, 3, 1, 4, 2, 5]


# width-1 images with the kernel's own padding give wrong weight gradients from kernel 43 on
DEPTHWISE = [
    *((16, 50, 11, 1), (128, 40, 17, 1), (32, 100, 51, 1), (16, 200, 75, 1), (20, 30, 13, 1), (16, 5, 87, 1)),
    *((1, 40, 3, 1), (16, 101, 87, 2), (16, 100, 11, 3), (16, 4, 5, 7)),
]


def convolve_and_differentiate(channels, frames, kernel, dilation, cast=lambda t: t):
    """Output, gradients of input and weight: by `convolve`, and exactly."""
    torch.manual_seed(0)
    padding = dilation * (kernel // 2)
    conv = nn.Conv1d(channels, channels, kernel, 1, padding, dilation, groups=channels, bias=False)
    conv.weight.data = cast(conv.weight.data)
    x = cast(torch.randn(3, channels, frames)).requires_grad_()
    output = convolve(conv, x)
    slope = torch.randn(3, channels, frames).to(output.dtype)
    exact_x, exact_weight = (t.detach().double().requires_grad_() for t in (x, conv.weight))
    exact = F.conv1d(exact_x, exact_weight, padding=padding, dilation=dilation, groups=channels)
    mine = (output, *torch.autograd.grad(output, (x, conv.weight), slope))
    theirs = (exact, *torch.autograd.grad(exact, (exact_x, exact_weight), slope.double()))
    return mine, theirs


@pytest.mark.parametrize(("channels", "frames", "kernel", "dilation"), DEPTHWISE)
@pytest.mark.parametrize("slice_values", [1 << 20, 1 << 10], ids=["whole", "sliced"])
def test_depthwise_convolution_equals_conv1d(channels, frames, kernel, dilation, slice_values, monkeypatch):
    monkeypatch.setattr(convolution, "_SLICE_VALUES", slice_values)
    for mine, exact in zip(*convolve_and_differentiate(channels, frames, kernel, dilation), strict=True):
        assert mine.shape == exact.shape
        assert (mine - exact).abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.parametrize("slice_values", [1 << 20, 1 << 10], ids=["whole", "sliced"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_from_single(dtype, slice_values, monkeypatch):
    monkeypatch.setattr(convolution, "_SLICE_VALUES", slice_values)
    for mine, exact in zip(*convolve_and_differentiate(16, 60, 33, 1, lambda t: t.to(dtype)), strict=True):
        assert mine.dtype == dtype
        assert (mine - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize(
    ("stride", "dilation", "dtype"), [(2, 1, torch.float32), (2, 2, torch.float32), (1, 1, torch.float64)]
)
def test_other_depthwise_convolutions_are_left_to_torch(stride, dilation, dtype):
    conv = nn.Conv1d(16, 16, 5, stride, 2 * dilation, dilation, groups=16, bias=False, dtype=dtype)
    x = torch.randn(2, 16, 30, dtype=dtype)
    assert torch.equal(convolve(conv, x), conv(x))


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("asked", [torch.bfloat16, torch.float16])
def test_autocast_gives_its_dtype_and_keeps_that_of_weight_gradients(asked, given):
    conv = nn.Conv1d(16, 16, 5, padding=2, groups=16, bias=False)
    x = torch.randn(2, 16, 30, dtype=given)
    with torch.autocast("cpu", asked):
        output = convolve(conv, x)
    assert output.dtype == asked
    torch.testing.assert_close(output, conv(x.float()).to(asked))
    output.sum().backward()
    assert conv.weight.grad.dtype == torch.float32


CONV = {"in_channels": 16, "out_channels": 16, "kernel_size": 5, "padding": 2, "groups": 16, "bias": False}


@pytest.mark.parametrize(
    ("changes", "dtype", "fast"),
    [
        ({}, torch.float32, True),
        ({"kernel_size": 3, "padding": 1}, torch.float32, True),
        ({"kernel_size": 1, "padding": 0}, torch.float32, False),
        ({"groups": 8}, torch.float32, False),
        ({"out_channels": 32}, torch.float32, False),
        ({"stride": 2}, torch.float32, False),
        ({"dilation": 2, "padding": 4}, torch.float32, True),
        ({}, torch.bfloat16, True),
        ({"stride": 2, "dilation": 2}, torch.float32, False),
        ({}, torch.float64, False),
    ],
)
def test_only_depthwise_convolutions_of_stride_1_are_evaluated_as_images(changes, dtype, fast, monkeypatch):
    seen = []
    own = convolution._depthwise
    monkeypatch.setattr(convolution, "_depthwise", lambda x, *rest: seen.append(x.shape[0]) or own(x, *rest))
    conv = nn.Conv1d(**{**CONV, **changes}, dtype=dtype)
    x = torch.randn(4, 16, 30, dtype=dtype)
    torch.testing.assert_close(convolve(conv, x), conv(x))
    assert seen == [4] * fast
    with torch.backends.mkldnn.flags(enabled=False):
        convolve(conv, x)
    assert seen == [4] * fast, "without oneDNN it is torch's"
    monkeypatch.setattr(convolution, "_SLICE_VALUES", 3 * 16 * 30)
    convolve(conv, x)
    assert seen == [4, 3, 1] * fast
    monkeypatch.setattr(convolution, "_SLICE_VALUES", 1)
    convolve(conv, x)
    assert seen == [4, 3, 1, 1, 1, 1, 1] * fast


@pytest.mark.parametrize("length", [1, 2, 7, 20])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(5, 1, 1), (5, 2, 1), (5, 1, 3), (1, 3, 1), (11, 2, 1)])
def test_lengths_are_those_of_the_output(length, kernel, stride, dilation):
    conv = padded_conv1d(4, 6, kernel, stride, dilation, groups=2)
    assert conv.bias is None
    assert (conv.groups, conv.padding) == (2, (dilation * (kernel // 2),))
    lens = torch.tensor([length])
    expected = conv(torch.zeros(1, 4, length)).shape[2]
    assert conv_lengths(conv, lens).tolist() == [expected]
    if stride == 1:
        assert conv_lengths(conv, lens) is lens


def test_convolutions_are_plain_unless_said():
    plain, masked = padded_conv1d(4, 4, 3), MaskedConv1d(4, 4, 3)
    for conv in (plain, masked.conv):
        assert (conv.stride, conv.dilation, conv.groups, conv.padding, conv.bias) == ((1,), (1,), 1, (1,), None)
    assert masked.heads == -1
    assert MaskedConv1d(8, 8, 3, heads=2).conv.weight.shape == (2, 1, 3)


def test_frames_beyond_the_length_are_zeroed_in_place_or_in_a_copy():
    x = torch.ones(2, 3, 4, dtype=torch.float64)
    frames = Frames.of(x, torch.tensor([4, 1]), masked=True)
    assert frames.mask_B1T.dtype == torch.float64
    assert frames.mask_B1T.tolist() == [[[1, 1, 1, 1]], [[1, 0, 0, 0]]]
    copy = frames.zero_padding(x.float())
    assert (copy.dtype, copy.sum().item(), x.sum().item()) == (torch.float32, 15, 24)
    assert frames.zero_padding_(x) is x
    assert x.sum() == 15
    plain = Frames.of(x, torch.tensor([4, 1]), masked=False)
    assert plain.mask_B1T is None
    assert plain.zero_padding(x) is x
    assert plain.zero_padding_(x) is x


WIDE = {"filters": 512, "kernel": 1, "residual": False}
# the standard deviation for a 1x1 convolution of 512 channels to 64; torch's own is uniform within 1/sqrt(512)
DEVIATION = {
    "xavier_uniform": (2 / 576) ** 0.5,
    "xavier_normal": (2 / 576) ** 0.5,
    "kaiming_uniform": (2 / 512) ** 0.5,
    "kaiming_normal": (2 / 512) ** 0.5,
    None: (3 * 512) ** -0.5,
}


def test_every_initializer_is_listed():
    assert INITIALIZERS.keys() == DEVIATION.keys()


@pytest.mark.parametrize("mode", DEVIATION)
def test_weights_start_from_the_distribution_that_is_said(mode):
    torch.manual_seed(0)
    decoder = ConvDecoder(DecoderConfig(init_mode=mode), 512, 64)
    encoder_config = EncoderConfig.read({"jasper": [WIDE | {"filters": 64}], "init_mode": mode}, "")
    encoder = ConvEncoder(encoder_config, tuple(plan_layers(encoder_config, 512)))
    alone = nn.Sequential(nn.Conv1d(512, 64, 1), nn.Linear(512, 64))
    linear = alone[1].weight.clone()
    initialize_convolutions(alone, mode)
    assert torch.equal(alone[1].weight, linear), "convolutions alone"
    for weight in (decoder.decoder_layers[0].weight, encoder.encoder[0].mconv[0].conv.weight, alone[0].weight):
        torch.testing.assert_close(weight.std().item(), DEVIATION[mode], rtol=0.02, atol=0)
        is_normal = weight.abs().max() > 2 * DEVIATION[mode]
        assert is_normal == (mode is not None and mode.endswith("normal"))
