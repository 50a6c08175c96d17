"""The keys of `optim.large_batch`, and who refuses it."""

import pytest
import torch

from lightning_novograd import ConfigError, build_optimizers, parse_optim
from lightning_novograd.config.schema import LargeBatchConfig
from lightning_novograd.config.several import parse_blocks


def block(value):
    return {"name": "novograd", "large_batch": value}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            {"global_batch_size": 256, "per_device_batch_size": 64},
            LargeBatchConfig(global_batch_size=256, per_device_batch_size=64),
        ),
        (
            {"global_batch_size": [[0, 256], [2e3, 1024]], "per_device_batch_size": 64, "lr_scaling": "sqrt"},
            LargeBatchConfig(global_batch_size=[[0, 256], [2000, 1024]], per_device_batch_size=64, lr_scaling="sqrt"),
        ),
        (None, None),
    ],
)
def test_what_is_parsed(value, expected):
    assert parse_optim(block(value)).large_batch == expected


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"global_batch_size": None}, r"optim\.large_batch\.global_batch_size: expected an integer or a list of"),
        ({"global_batch_size": "256"}, r"optim\.large_batch\.global_batch_size: expected .*, got the text '256'"),
        ({"global_batch_size": 100}, r"optim\.large_batch\.global_batch_size: 100 is not a multiple of 64"),
        ({"global_batch_size": 0}, r"optim\.large_batch\.global_batch_size: .* at least 1, got 0"),
        ({"global_batch_size": []}, r"optim\.large_batch\.global_batch_size: expected a list of pairs"),
        ({"global_batch_size": [[0, 256], [9, 100]]}, r"optim\.large_batch\.global_batch_size\[1\]: 100 is not a mul"),
        ({"global_batch_size": [[5, 256]]}, r"optim\.large_batch\.global_batch_size\[0\]: the first stage begins at"),
        ({"global_batch_size": [[0, 256], [0, 512]]}, r"optim\.large_batch\.global_batch_size\[1\]: .*not after"),
        ({"per_device_batch_size": 0}, r"optim\.large_batch\.per_device_batch_size: .* at least 1, got 0"),
        ({"lr_scaling": "cubic"}, r"optim\.large_batch\.lr_scaling: expected 'linear' or 'sqrt' or 'none'"),
        ({"global_batchsize": 256}, r"optim\.large_batch\.global_batchsize: unknown key; did you mean 'global_batch_s"),
    ],
)
def test_what_is_refused(changes, error):
    with pytest.raises(ConfigError, match=error):
        parse_optim(block({"global_batch_size": 256, "per_device_batch_size": 64, **changes}))


@pytest.mark.parametrize("key", ["global_batch_size", "per_device_batch_size"])
def test_what_must_be_given(key):
    value = {"global_batch_size": 256, "per_device_batch_size": 64}
    del value[key]
    with pytest.raises(ConfigError, match=rf"optim\.large_batch\.{key}: missing; expected an integer"):
        parse_optim(block(value))


VALUE = {"global_batch_size": 256, "per_device_batch_size": 64}


def test_a_loop_of_ones_own_accumulates_itself():
    with pytest.raises(ConfigError, match=r"optim\.large_batch: Lightning accumulates .*solve_batch_ramp"):
        build_optimizers(block(VALUE), torch.nn.Linear(2, 1))


def test_one_of_several_blocks_cannot_accumulate():
    with pytest.raises(ConfigError, match=r"optim\.encoder\.large_batch: .*here are several"):
        parse_blocks({"encoder": block(VALUE), "decoder": block(None)})
