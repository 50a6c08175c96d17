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
        ({"dilation": 2, "padding": 4}, torch.float32, False),
        ({"stride": 2, "dilation": 2}, torch.float32, False),
        ({}, torch.float64, False),
    ],
)
def test_only_plain_depthwise_convolutions_are_evaluated_as_images(changes, dtype, fast, monkeypatch):
    seen = []
    own = convolution._depthwise
    monkeypatch.setattr(convolution, "_depthwise", lambda x, weight: seen.append(x.shape[0]) or own(x, weight))
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
