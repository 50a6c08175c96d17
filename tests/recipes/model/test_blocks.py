"""Jasper blocks: equal to a literal reference, and masked as NeMo masks."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.model.blocks import ACTIVATIONS, BlockConfig, JasperBlock
from lightning_novograd.recipes.asr.model.convolution import Frames, GroupShuffle, MaskedConv1d
from lightning_novograd.recipes.common.batch_norm import BatchNorm

LENS = torch.tensor([37, 20, 1])


def reference_block(block, config, inputs, lens):
    """NeMo's block, literally: frames beyond the length are zeroed before every convolution."""

    def masked_conv(conv, x, lens):
        x = x * (torch.arange(x.shape[2]) < lens[:, None])[:, None]
        weight, groups = conv.weight, conv.groups
        if config.heads > 0 and groups == config.heads:  # shared kernels, written out for every channel
            weight = weight.repeat(x.shape[1] // config.heads, 1, 1)
            groups = x.shape[1]
        y = F.conv1d(x, weight, None, conv.stride, conv.padding, conv.dilation, groups)
        reach = conv.dilation[0] * (conv.kernel_size[0] - 1)
        return y, (lens + 2 * conv.padding[0] - reach - 1) // conv.stride[0] + 1

    def run(modules, x, lens):
        for module in modules:
            if isinstance(module, MaskedConv1d):
                x, lens = masked_conv(module.conv, x, lens)
            elif isinstance(module, nn.BatchNorm1d):
                x = F.batch_norm(x, None, None, module.weight, module.bias, training=True, eps=1e-3)
            elif isinstance(module, nn.ReLU):
                x = F.relu(x)
            elif isinstance(module, GroupShuffle):
                x = x.reshape(len(x), config.groups, -1, x.shape[2]).transpose(1, 2).reshape(x.shape)
            else:
                assert isinstance(module, nn.Dropout)
                assert module.p == 0
        return x, lens

    y, new_lens = run(block.mconv, inputs[-1], lens)
    for branch, x in zip(block.res, inputs, strict=False):
        y = y + run(branch, x, lens)[0]
    return F.relu(y), new_lens


BLOCKS = {
    "jasper": {"filters": 12, "kernel": 5, "residual": False},
    "jasper, residual": {"filters": 12, "kernel": 5, "repeat": 3, "residual": True},
    "quartznet": {"filters": 12, "kernel": 5, "repeat": 3, "residual": True, "separable": True},
    "dilated": {"filters": 12, "kernel": 5, "dilation": 2, "residual": False, "separable": True},
    "strided": {"filters": 12, "kernel": 5, "stride": 2, "residual": False, "separable": True},
    "strided in every sub-block": {"filters": 12, "kernel": 5, "stride": 2, "repeat": 2, "residual": False},
    "strided last": {"filters": 12, "kernel": 5, "stride": 2, "repeat": 3, "stride_last": True, "residual": True},
    "dense": {"filters": 12, "kernel": 5, "repeat": 2, "residual": True, "residual_dense": True},
    "grouped": {"filters": 12, "kernel": 5, "repeat": 2, "groups": 2, "residual": True},
    "grouped, separable": {"filters": 12, "kernel": 5, "repeat": 2, "groups": 2, "separable": True, "residual": True},
    "heads": {"filters": 12, "kernel": 5, "repeat": 2, "heads": 4, "separable": True, "residual": False},
}


@pytest.mark.parametrize("keys", BLOCKS.values(), ids=BLOCKS.keys())
def test_a_block_and_its_gradients_equal_the_reference(keys):
    torch.manual_seed(0)
    config = BlockConfig(**keys)
    residual_channels = () if not config.residual else (8, 10, 4) if config.residual_dense else (4,)
    channels = residual_channels or (4,)
    stride = config.stride if config.stride_last else 1
    block = JasperBlock(config, channels[-1], residual_channels, stride).double()
    inputs = [torch.randn(3, c, 40, dtype=torch.float64, requires_grad=True) for c in channels]
    frames = Frames.of(inputs[0], LENS, masked=True)

    output, at = block([frames.zero_padding(x) for x in inputs], frames)
    expected, expected_lens = reference_block(block, config, inputs, LENS)

    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    assert at.lens_B.tolist() == expected_lens.tolist() == block.output_lengths(LENS).tolist()
    leaves = [*inputs, *block.parameters()]
    slope = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad(output, leaves, slope), torch.autograd.grad(expected, leaves, slope), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


def test_what_lies_in_the_padding_does_not_matter_and_the_input_is_left_alone():
    torch.manual_seed(0)
    block = JasperBlock(BlockConfig(filters=8, kernel=5, repeat=2, residual=True, separable=True), 8, (8,)).eval()
    x = torch.randn(3, 8, 40)
    frames = Frames.of(x, LENS, masked=True)
    dirty = torch.where(frames.mask_B1T.bool(), x, 3.0)
    kept = dirty.clone()
    with torch.no_grad():
        clean_output, _ = block([frames.zero_padding(x)], frames)
        dirty_output, _ = block([frames.zero_padding(dirty)], frames)
    assert torch.equal(clean_output, dirty_output)
    assert torch.equal(dirty, kept)


def test_the_mask_is_made_once_where_no_frame_is_gained_or_lost():
    x = torch.randn(3, 8, 40)
    frames = Frames.of(x, LENS, masked=True)
    same = JasperBlock(BlockConfig(filters=8, kernel=5, repeat=2, residual=True), 8, (8,))
    strided = JasperBlock(BlockConfig(filters=8, kernel=5, stride=2, residual=False), 8)
    assert same([x], frames)[1] is frames
    assert strided([x], frames)[1] is not frames


@pytest.mark.parametrize(("length", "expected"), [(0, 0), (1, 1), (2, 1), (3, 2), (40, 20), (41, 21)])
def test_a_stride_of_two_keeps_every_second_frame_and_makes_none_of_none(length, expected):
    block = JasperBlock(BlockConfig(filters=4, kernel=11, stride=2, residual=False, separable=True), 4)
    assert block.output_lengths(torch.tensor([length])).item() == expected


def test_without_conv_mask_keys_are_plain_and_padding_leaks():
    config = BlockConfig(filters=8, kernel=5, residual=True, separable=True)
    block = JasperBlock(config, 8, (8,), conv_mask=False).eval()
    assert {name for name in block.state_dict() if "running" not in name and "num" not in name} == {
        "mconv.0.weight",
        "mconv.1.weight",
        "mconv.2.weight",
        "mconv.2.bias",
        "res.0.0.weight",
        "res.0.1.weight",
        "res.0.1.bias",
    }
    x = torch.ones(1, 8, 10)
    frames = Frames.of(x, torch.tensor([5]), masked=False)
    with_ones = block([x], frames)[0]
    x[:, :, 5:] = 0
    assert not torch.allclose(with_ones[:, :, :5], block([x], frames)[0][:, :, :5])


@pytest.mark.parametrize(
    ("kernel", "factor", "expected"),
    [(11, 1.0, 11), (12, 1.0, 13), (1, 1.0, 1), (11, 0.5, 5), (13, 0.5, 7), (3, 0.1, 1)],
)
@pytest.mark.filterwarnings("ignore:kernel 12 is even")
def test_kernels_are_odd(kernel, factor, expected):
    config = BlockConfig(filters=4, kernel=kernel, kernel_size_factor=factor, residual=False)
    assert config.kernel_size == JasperBlock(config, 4).mconv[0].conv.kernel_size[0] == expected


def test_an_even_kernel_is_not_rounded_silently():
    with pytest.warns(UserWarning, match="kernel 12 is even and becomes 13"):
        BlockConfig(filters=4, kernel=12, residual=False)


@pytest.mark.parametrize(("kernel", "factor"), [(12, 0.5), (12, 2.0), (11, 1.0)])
def test_other_kernels_are_not_warned_of(kernel, factor, recwarn):
    BlockConfig(filters=4, kernel=kernel, kernel_size_factor=factor, residual=False)
    assert not recwarn


NAMES = {
    "relu": nn.ReLU,
    "hardtanh": nn.Hardtanh,
    "selu": nn.SELU,
    "swish": nn.SiLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "identity": nn.Identity,
}


@pytest.mark.parametrize(("name", "kind"), NAMES.items())
def test_activation_and_dropout_stand_behind_every_sub_block(name, kind):
    assert ACTIVATIONS.keys() == NAMES.keys()
    config = BlockConfig(filters=8, kernel=5, repeat=2, residual=True, dropout=0.25)
    block = JasperBlock(config, 4, (4,), activation=name)
    activations = [block.mconv[2], block.mout[0]]
    assert [type(module) for module in block.mconv] == [
        *(MaskedConv1d, BatchNorm, kind, nn.Dropout),
        *(MaskedConv1d, BatchNorm),
    ]
    assert [type(module) for module in activations] == [kind, kind]
    assert {getattr(module, "inplace", None) for module in activations} == (
        {None} if name in ("gelu", "identity") else {True}
    )
    assert [module.p for module in (block.mconv[3], block.mout[1])] == [0.25, 0.25]
    assert activations[0](torch.zeros(1)) == 0, "what is masked stays masked"
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm1d)]
    assert [(norm.num_features, norm.eps, norm.momentum) for norm in norms] == [(8, 1e-3, 0.1)] * 3


def test_a_block_is_relu_masked_and_without_residual_unless_said():
    block = JasperBlock(BlockConfig(filters=8, kernel=5, residual=True), 4)
    assert isinstance(block.mout[0], nn.ReLU)
    assert (block.conv_mask, len(block.res)) == (True, 0)
    assert JasperBlock(BlockConfig(filters=8, kernel=5, residual=True), 4, (4,)).res[0][0].conv.stride == (1,)


@pytest.mark.parametrize("separable", [False, True])
def test_unmasked_convolutions_are_as_wide_and_as_strided(separable):
    keys = {"filters": 8, "kernel": 5, "stride": 2, "residual": True, "separable": separable, "groups": 2}
    config = BlockConfig(**keys)
    plain, masked = (JasperBlock(config, 4, (4,), 2, conv_mask=mask) for mask in (False, True))
    convs = [[m for m in block.modules() if isinstance(m, nn.Conv1d)] for block in (plain, masked)]
    assert [str(conv) for conv in convs[0]] == [str(conv) for conv in convs[1]]
    assert plain.output_lengths(torch.tensor([9, 1])).tolist() == masked.output_lengths(torch.tensor([9, 1])).tolist()


@pytest.mark.parametrize(
    ("keys", "stride"), [({}, 2), ({"repeat": 3}, 8), ({"repeat": 3, "stride_last": True}, 2), ({"stride": 1}, 1)]
)
def test_the_stride_of_a_block(keys, stride):
    assert BlockConfig(**{"filters": 4, "kernel": 5, "stride": 2, "residual": False, **keys}).total_stride == stride


@pytest.mark.parametrize("keys", [{"stride": 2}, {"dilation": 2}, {"heads": 1, "separable": True}, {"groups": 8}])
def test_what_is_just_allowed(keys):
    assert BlockConfig(filters=8, kernel=5, residual=True, **keys)
    assert BlockConfig(filters=8, kernel=5, residual=True, residual_dense=True, dilation=2)


GOOD = {"filters": 8, "kernel": [5], "residual": True}
BAD_KEYS = [
    ({"kernal": 5}, "block.kernal", "unknown key; did you mean 'kernel'?"),
    ({"filters": "8"}, "block.filters", "must be a whole number, not '8'"),
    ({"filters": 8.0}, "block.filters", "must be a whole number, not 8.0"),
    ({"filters": True}, "block.filters", "must be a whole number, not True"),
    ({"filters": 0}, "block.filters", "must be at least 1, not 0"),
    ({"kernel": [5, 7]}, "block.kernel", "must be one number or a list of one, not [5, 7]"),
    ({"kernel": []}, "block.kernel", "must be one number or a list of one, not []"),
    ({"stride": None}, "block.stride", "must be a whole number, not None"),
    ({"dropout": 1.0}, "block.dropout", "must be less than 1.0, not 1.0"),
    ({"dropout": float("nan")}, "block.dropout", "must be finite, not nan"),
    ({"residual": "yes"}, "block.residual", "must be true or false, not 'yes'"),
    ({"residual_mode": "stride-add"}, "block.residual_mode", "did you mean 'stride_add'?"),
    ({"stride": 2, "dilation": 2}, "block.dilation", "only one of them can be above 1"),
    ({"residual": False, "residual_dense": True}, "block.residual_dense", "needs residual: true"),
    ({"residual_dense": True, "stride": 2}, "block.residual_dense", "need one length"),
    ({"heads": 4}, "block.heads", "above 0 with separable: true"),
    ({"heads": 0, "separable": True}, "block.heads", "0 is impossible"),
    ({"groups": 3}, "block.groups", "3 do not divide the 8 filters"),
    ({"se": True}, "block.se", "True is not supported"),
    ({"copies": 0}, "block.copies", "must be at least 1"),
    ({"_target_": "os.system"}, "block._target_", "is refused"),
]


@pytest.mark.parametrize(("keys", "path", "problem"), BAD_KEYS)
def test_a_bad_key_is_named(keys, path, problem):
    with pytest.raises(ConfigError) as error:
        BlockConfig.read(GOOD | keys, "block")
    assert error.value.path == path
    assert problem in error.value.problem


@pytest.mark.parametrize("name", GOOD)
def test_a_missing_key_is_named(name):
    with pytest.raises(ConfigError, match=rf"^block\.{name}: is missing"):
        BlockConfig.read({k: v for k, v in GOOD.items() if k != name}, "block")
