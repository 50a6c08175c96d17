"""NovoGrad gives the values of NeMo's Novograd: ten steps of every case, from files made by running NeMo."""

import json
from pathlib import Path

import pytest
import torch

from lightning_novograd.optim import NovoGrad

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
CASES = [case["name"] for case in json.loads((GOLDEN / "novograd_float64.json").read_text())["cases"]]
WORKERS = {
    "single": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "default": {},
}


@pytest.mark.parametrize(
    ("file", "dtype", "tolerance"),
    [("novograd_float64.json", torch.float64, 1e-12), ("novograd_float32.json", torch.float32, 2e-6)],
    ids=["float64", "float32"],
)
@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.parametrize("name", CASES)
def test_ten_steps_equal_nemo(golden, name, worker, file, dtype, tolerance):
    data = golden(file)
    case = next(c for c in data["cases"] if c["name"] == name)
    params = {}
    for key, shape in data["shapes"].items():
        init = torch.tensor(data["params_init"][key], dtype=torch.float64).view(shape).to(dtype)
        params[key] = torch.nn.Parameter(torch.zeros_like(init) if key in case["zero_init"] else init)
    groups = [{**group, "params": [params[key] for key in group["params"]]} for group in case["groups"]]
    optimizer = NovoGrad(groups, **case["hyper"], **WORKERS[worker])

    for step in range(data["steps"]):
        if case["lr_per_step"]:
            for group, lrs in zip(optimizer.param_groups, case["lr_per_step"], strict=True):
                group["lr"] = lrs[step]
        for key, param in params.items():
            grad = torch.tensor(data["grads"][key][step], dtype=torch.float64).view_as(param).to(dtype)
            param.grad = None if step + 1 in case["none_grads"].get(key, ()) else grad
        optimizer.step()
        for key, param in params.items():
            assert_close(param, case["params_after"][key][step], tolerance, f"{key} after step {step + 1}")
            expected = case["exp_avg_sq_after"][key][step]
            if expected is None:
                assert param not in optimizer.state
            else:
                assert_close(optimizer.state[param]["exp_avg_sq"], expected, tolerance, f"{key} second moment")

    for key, param in params.items():
        final = case["final_state"][key]
        assert_close(optimizer.state[param]["exp_avg"], final["exp_avg"], tolerance, f"{key} first moment")
        if optimizer.defaults["amsgrad"]:
            assert_close(optimizer.state[param]["max_exp_avg_sq"], final["max_exp_avg_sq"], tolerance, f"{key} maximum")


def assert_close(actual, expected, tolerance, what):
    """The largest difference relative to the largest expected value: float64 element by element, float32 per tensor."""
    actual = actual.detach().double().flatten()
    expected = torch.tensor(expected, dtype=torch.float64).flatten()
    if tolerance <= 1e-12:
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=1e-15, msg=lambda m: f"{what}: {m}")
    else:
        error = (actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
        assert error <= tolerance, f"{what}: relative error {error:.1e}"
