"""The large_batch block: nothing in it is asked for in vain."""

import pytest

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.common.settings.large_batch import LargeBatchSettings, ReferenceSettings


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (
            {"reference": {"lr": 0.1}},
            r"^large_batch\.reference\.global_batch_size: is missing: lr=0\.1 was tuned at",
        ),
        (
            {"reference": {"global_batch_size": 64}},
            r"^large_batch\.lr_scaling: is null, .* 64: say linear, sqrt or",
        ),
        ({"lr_scaling": "sqrt"}, r"^large_batch\.reference\.global_batch_size: is missing: lr_scaling=sqrt from"),
        ({"lr_scaling": "lineer"}, r"^large_batch\.lr_scaling: 'lineer' is unknown; did you mean 'linear'"),
        (
            {"reference": {"global_batch_siz": 64}},
            r"^large_batch\.reference\.global_batch_siz: unknown key",
        ),
        ({"reference": 64}, r"^large_batch\.reference: must be a mapping, not 64"),
        (
            {"max_per_device_batch_size": 8},
            r"^large_batch\.max_per_device_batch_size: is for splitting gl",
        ),
        ({"last": "kepp"}, r"^large_batch\.last: 'kepp' is unknown; did you mean 'keep'"),
        ({"warmup_ratio": 1.5}, r"^large_batch\.warmup_ratio: must be at most 1\.0, not 1\.5"),
    ],
)
def test_mistakes(block, message):
    with pytest.raises(ConfigError, match=message):
        LargeBatchSettings.read(block, "large_batch")


def test_without_a_reference_nothing_is_scaled():
    for block in ({}, {"reference": None}, {"reference": {}}, {"lr_scaling": None}):
        assert LargeBatchSettings.read(block, "large_batch") == LargeBatchSettings()
    assert LargeBatchSettings().reference == ReferenceSettings()
