"""Checkpoints of strangers: a model is no larger than its weights, and its weights are numbers."""

import copy
import time

import pytest
import torch

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.model.jasper import JasperCTC
from lightning_novograd.recipes.asr.weights.checkpoint import load_model
from lightning_novograd.recipes.common.checkpoints.finite import nonfinite_names

BLOCK = {"filters": 8, "kernel": 11, "stride": 2, "residual": False}
MODEL = {"labels": ["a", "b"], "preprocessor": {"features": 64}, "encoder": {"jasper": [BLOCK]}}


@pytest.fixture
def saved(tmp_path):
    """`saved(weights, key=value)`: a checkpoint with such weights, and keys of the block changed."""

    def save(weights=(), **block):
        model = copy.deepcopy(MODEL)
        model["preprocessor"] |= {key: block.pop(key) for key in list(block) if key in ("n_fft", "features")}
        model["encoder"]["jasper"][0] |= block
        state_dict = {f"model.{name}": value for name, value in JasperCTC.from_config(MODEL).state_dict().items()}
        content = {"hyper_parameters": {"model": model}, "state_dict": state_dict | dict(weights)}
        torch.save(content, tmp_path / "a.ckpt")
        return tmp_path / "a.ckpt"

    return save


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"repeat": 10**30}, ConfigError, r"^model\.encoder\.jasper\[0\]\.repeat: an integer of 100 bits is too large"),
        ({"copies": 10**10}, ConfigError, r"\.copies: must be at most 1000, not 10000000000$"),
        ({"repeat": 1e30}, ConfigError, r"\.repeat: must be a whole number, not 1e\+30$"),
        ({"repeat": 1000, "copies": 1000}, ConfigError, r"^model\.encoder\.jasper: has 1000000 sub-blocks, .* 2000$"),
        ({"repeat": 2000, "stride": 1}, ConfigError, r"\.repeat: must be at most 1000"),
        ({"repeat": 1000, "stride": 1}, DataError, r"it has 1000 convolutions, but \d+ weights are there$"),
        (
            {"copies": 1000, "stride": 1, "residual": True, "residual_dense": True},
            DataError,
            r"it has 501500 convolutions, but \d+ weights are there$",
        ),
        ({"filters": 65536, "kernel": 65535}, DataError, r"does not fit its own config: Error\(s\) .* size mismatch"),
        ({"kernel_size_factor": 1e308}, ConfigError, r"\.kernel_size_factor: must be at most 1000"),
        (
            {"features": 4096, "n_fft": 1 << 20},
            ConfigError,
            r"^model\.preprocessor\.features: 4096 filters of 1048576 ",
        ),
        ({"n_fft": 1 << 19}, DataError, r"size mismatch"),
        ({"filters": torch.ones(2)}, ConfigError, r"^model\.encoder\.jasper\[0\]\.filters: "),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_a_model_is_no_larger_than_its_weights(saved, changes, error, message):
    path = saved(**changes)
    started = time.perf_counter()
    with pytest.raises(error, match=message):
        load_model(path)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(saved, value):
    name = "model.encoder.encoder.0.mconv.1.weight"
    path = saved({name: torch.full((8,), value)})
    with pytest.raises(DataError) as error:
        load_model(path)
    short = name.removeprefix("model.")
    assert str(error.value) == f"checkpoint {path} has weights that are not finite (NaN or infinity): {short}"
    other = "model.encoder.encoder.0.mconv.1.bias"
    with pytest.raises(DataError, match=rf"{short} and 1 more$"):
        load_model(saved(dict.fromkeys((name, other), torch.full((8,), value))))


def test_names_of_weights_that_are_not_finite():
    nan, inf = torch.tensor([1.0, float("nan")]), torch.tensor([float("-inf"), float("inf")])
    large = torch.full((4,), 3e38)  # whose sum alone overflows
    count, empty, text = torch.tensor(3), torch.ones(0), "no tensor"
    state_dict = {"a": nan, "b": large, "c": inf, "d": count, "e": empty, "f": text, 7: nan.half()}
    assert nonfinite_names(state_dict) == ["a", "c", "7"]
    assert nonfinite_names(state_dict, first=1) == ["a"]
    assert nonfinite_names({"b": large, "d": count}) == nonfinite_names({}) == []
