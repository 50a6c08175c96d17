"""What NovoGrad refuses, and that nothing has changed then."""

import pytest
import torch

from lightning_novograd.optim import NovoGrad
from lightning_novograd.optim.novograd import functional


def parameter(*shape, dtype=torch.float32):
    return torch.nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "Invalid learning rate: -1.0"),
        ({"lr": float("nan")}, "Invalid learning rate: nan"),
        ({"lr": 1e39}, "Invalid learning rate: 1e\\+39"),
        ({"lr": torch.tensor(1e39, dtype=torch.float64)}, "Invalid learning rate: 1e\\+39"),
        ({"lr": torch.ones(2)}, "Tensor lr must be 1-element"),
        ({"betas": (1.0, 0.5)}, "Invalid beta parameter at index 0: 1.0"),
        ({"betas": (0.9, -0.1)}, "Invalid beta parameter at index 1: -0.1"),
        ({"betas": (0.9,)}, "Invalid betas"),
        ({"betas": (0.9, 0.99999999)}, "Invalid beta parameter at index 1: 0.99999999.* is 1 in float32"),
        ({"eps": -1e-8}, "Invalid eps value: -1e-08"),
        ({"eps": 1e-50}, "Invalid eps value: 1e-50; allowed: 0, or .* at least 1.2e-38"),
        ({"eps": 1e-45}, "Invalid eps value: 1e-45"),
        ({"weight_decay": 1e300}, "Invalid weight_decay value: 1e\\+300"),
        ({"luc_eps": 1e-50, "luc": True}, "Invalid luc_eps value: 1e-50"),
        ({"luc_trust": 1e39}, "Invalid luc_trust value: 1e\\+39"),
        ({"weight_decay": -0.1}, "Invalid weight_decay value: -0.1"),
        ({"luc_trust": -1.0}, "Invalid luc_trust value: -1.0"),
        ({"luc_eps": float("inf")}, "Invalid luc_eps value: inf"),
    ],
    ids=str,
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        NovoGrad([parameter(2)], **options)
    with pytest.raises(ValueError, match=message):
        NovoGrad([{"params": [parameter(2)], **options}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fused": True, "foreach": True}, "`fused` and `foreach` cannot be `True` together"),
        ({"fused": True, "differentiable": True}, "do not support `differentiable`"),
        ({"foreach": True, "differentiable": True}, "do not support `differentiable`"),
    ],
    ids=str,
)
def test_workers_that_exclude_each_other(options, message):
    with pytest.raises(RuntimeError, match=message):
        NovoGrad([parameter(2)], **options)


def step_on_a_device_without_kernels(monkeypatch):
    """The second group's layers, which have two elements, seem to lie on an mps device."""
    types = functional._device_types
    monkeypatch.setattr(functional, "_device_types", lambda ps: {"mps"} if len(ps[0]) == 2 else types(ps))


REFUSED_SECOND_GROUPS = {
    "complex": ({"fused": True}, torch.complex64, lambda patch: None, "fused=True"),
    "capturable": ({"capturable": True}, torch.float32, lambda patch: None, "If capturable=True"),
    "device": ({"fused": True}, torch.float32, step_on_a_device_without_kernels, "needs parameters on CPU or CUDA"),
}


@pytest.mark.parametrize("case", REFUSED_SECOND_GROUPS)
def test_a_later_group_that_is_refused_leaves_the_first_as_it_was(case, monkeypatch):
    options, dtype, arrange, message = REFUSED_SECOND_GROUPS[case]
    arrange(monkeypatch)
    params = [parameter(3), parameter(2, dtype=dtype)]
    optimizer = NovoGrad([{"params": params[:1], "fused": options.get("fused")}, {"params": params[1:], **options}])
    for param in params:
        param.grad = torch.ones_like(param)
    with pytest.raises((RuntimeError, AssertionError), match=message):
        optimizer.step()
    assert torch.equal(params[0], parameter(3))
    assert not any(value.any() for state in optimizer.state.values() for value in state.values())
