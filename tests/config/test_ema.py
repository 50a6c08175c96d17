"""The keys of `optim.ema`."""

import pytest

from lightning_novograd import ConfigError, parse_optim
from lightning_novograd.config.schema import EmaConfig


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.99, EmaConfig(decay=0.99)),
        (0, EmaConfig(decay=0.0)),
        ({}, EmaConfig()),
        ({"decay": 0.9, "device": "cpu"}, EmaConfig(decay=0.9, device="cpu")),
        (
            {"update_every_n_steps": 5, "update_starting_at_step": 0},
            EmaConfig(update_every_n_steps=5, update_starting_at_step=0),
        ),
        (None, None),
    ],
)
def test_what_is_parsed(value, expected):
    assert parse_optim({"name": "novograd", "ema": value}).ema == expected


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (1.0, r"optim\.ema\.decay: 1.0 is out of range; must be at least 0 and below 1"),
        (0.99999999, r"optim\.ema\.decay: .* in float32"),
        (-0.1, r"optim\.ema\.decay: .* out of range"),
        ({"decoy": 0.9}, r"optim\.ema\.decoy: unknown key; did you mean 'decay'\?"),
        ({"update_every_n_steps": 0}, r"optim\.ema\.update_every_n_steps: 0 is out of range; must be at least 1"),
        ({"update_starting_at_step": -1}, r"optim\.ema\.update_starting_at_step: -1 is out of range"),
        ({"device": "cuda"}, r"optim\.ema\.device: .*cpu"),
        ({"use_buffers": "maybe"}, r"optim\.ema\.use_buffers: "),
        (True, r"optim\.ema: "),
        ("much", r"optim\.ema: "),
    ],
)
def test_what_is_refused(value, error):
    with pytest.raises(ConfigError, match=error):
        parse_optim({"name": "novograd", "ema": value})
