"""LARC's factors: of the norms' dtype and shape whatever the LR is kept in."""

import pytest
import torch
from optim.larc.larc_cases import SGD, make_params, run

from lightning_novograd.optim.larc.factors import larc_options
from lightning_novograd.optim.larc.optimizer import LARC

LRS = {
    "0-dim": torch.tensor(0.1),
    "one element": torch.tensor([0.1]),
    "float64": torch.tensor(0.1, dtype=torch.float64),
    "float64 of one element": torch.tensor([0.1], dtype=torch.float64),
}


@pytest.mark.parametrize("lr", LRS.values(), ids=LRS)
@pytest.mark.parametrize("target", ["gradient", "update"])
def test_an_lr_tensor_gives_the_factors_of_a_float(lr, target):
    params, others = make_params(), make_params()
    options = {"trust_coefficient": 0.01, "target": target}
    by_tensor, by_float = LARC(SGD(params, lr=lr.clone()), **options), LARC(SGD(others, lr=0.1), **options)
    run(by_tensor, params, 3)
    run(by_float, others, 3)
    torch.testing.assert_close(params, others, rtol=1e-6, atol=1e-7)
    for (_, factors), (_, expected) in zip(by_tensor.factors, by_float.factors, strict=True):
        torch.testing.assert_close(factors, expected, rtol=1e-6, atol=0)
        assert (factors < 1).any()


@pytest.mark.parametrize("lr", LRS.values(), ids=LRS)
@pytest.mark.parametrize("like", [torch.ones(3), torch.ones(2, dtype=torch.float64)])
def test_an_lr_tensor_is_taken_to_the_norms(lr, like):
    group = LARC(SGD(make_params(), lr=lr.clone())).param_groups[0]
    taken = larc_options(group, like)["lr"]
    assert (taken.dtype, taken.device, taken.shape) == (like.dtype, like.device, ())
    assert larc_options({**group, "lr": 0.1}, like)["lr"] == 0.1


@pytest.mark.parametrize("lr", LRS.values(), ids=LRS)
def test_an_lr_tensor_of_the_cpu_goes_to_another_device_as_a_number(lr):
    group = LARC(SGD(make_params(), lr=lr.clone())).param_groups[0]
    taken = larc_options(group, torch.ones(1, device="meta"))["lr"]
    assert type(taken) is float
    assert taken == lr.item()
