"""LARC with target gradient gives the values of apex's LARC and of OpenSeq2Seq's: ten steps of every case."""

import json
import warnings
from pathlib import Path

import pytest
import torch

from lightning_novograd.optim import NovoGrad
from lightning_novograd.optim.larc import LARC, larc_arguments_from_openseq2seq

pytestmark = pytest.mark.usefixtures("kernels")  # each test with and without the C++ kernels

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
FLOAT64, FLOAT32 = (torch.float64, 1e-12), (torch.float32, 2e-6)


def cases(file):
    return [case["name"] for case in json.loads((GOLDEN / file).read_text())["cases"]]


def parameters(data, dtype):
    return {
        key: torch.nn.Parameter(torch.tensor(data["params_init"][key], dtype=torch.float64).view(shape).to(dtype))
        for key, shape in data["shapes"].items()
    }


def set_grads(data, params, step):
    for key, param in params.items():
        param.grad = torch.tensor(data["grads"][key][step], dtype=torch.float64).view_as(param).to(param.dtype)


def assert_close(actual, expected, tolerance, where):
    expected = torch.tensor(expected, dtype=torch.float64)
    difference = (actual.detach().double().flatten() - expected).abs().max()
    assert difference <= tolerance * expected.abs().max(), f"{where}: off by {difference}"


def build(inner, groups):
    classes = {"torch.optim.SGD": torch.optim.SGD, "nemo.Novograd": NovoGrad}
    return classes[inner["optimizer"]](groups, **inner["args"])


@pytest.mark.parametrize(
    ("file", "dtype", "tolerance"),
    [("larc_apex_float64.json", *FLOAT64), ("larc_apex_float32.json", *FLOAT32)],
    ids=["float64", "float32"],
)
@pytest.mark.parametrize("watched", [True, False], ids=["watched", "unwatched"])
@pytest.mark.parametrize("name", cases("larc_apex_float64.json"))
def test_ten_steps_equal_apex(golden, name, watched, file, dtype, tolerance):
    data = golden(file)
    case = next(c for c in data["cases"] if c["name"] == name)
    params = parameters(data, dtype)
    groups = case["groups"] or [{"params": list(params)}]
    inner = build(case["inner"], [{**group, "params": [params[key] for key in group["params"]]} for group in groups])
    received = {}
    if watched:
        inner.register_step_pre_hook(lambda *_: received.update({key: p.grad.norm() for key, p in params.items()}))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not bound the steps of NovoGrad")
        optimizer = LARC(inner, **case["larc"], target="gradient")

    for step in range(data["steps"]):
        if case["lr_per_step"]:
            for group, lrs in zip(optimizer.param_groups, case["lr_per_step"], strict=True):
                group["lr"] = lrs[step]
        set_grads(data, params, step)
        optimizer.step()
        for key, param in params.items():
            where = f"{key}, step {step + 1}"
            if watched:
                assert_close(received[key], [case["inner_grad_norm"][key][step]], tolerance, f"gradient of {where}")
            assert_close(param, case["params_after"][key][step], tolerance, where)


@pytest.mark.parametrize("name", cases("larc_openseq2seq_float64.json"))
def test_ten_steps_equal_openseq2seq(golden, name):
    data = golden("larc_openseq2seq_float64.json")
    case = next(c for c in data["cases"] if c["name"] == name)
    params = parameters(data, torch.float64)
    given = {k: v for k, v in case["larc_params"].items() if k not in case["keys_left_at_default"]}
    inner = torch.optim.SGD(params.values(), lr=case["lr"], **case["inner"]["args"])
    optimizer = LARC(inner, **larc_arguments_from_openseq2seq(given))

    for step in range(data["steps"]):
        if case["lr_per_step"]:
            optimizer.param_groups[0]["lr"] = case["lr_per_step"][step]
        set_grads(data, params, step)
        optimizer.step()
        [(layers, factors)] = optimizer.factors
        for (key, param), layer, factor in zip(params.items(), layers, factors, strict=True):
            where = f"{key}, step {step + 1}"
            assert layer is param
            if param.grad.any():  # a zero gradient stays zero whatever the factor
                assert_close(factor, [case["larc_grad_update"][key][step]], 1e-12, f"factor of {where}")
            assert_close(param, case["params_after"][key][step], 1e-12, where)
