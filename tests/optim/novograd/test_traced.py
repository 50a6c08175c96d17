"""Whoever looks at single tensor operations sees those of the step: no kernel writes memory behind them."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_novograd.optim import LARC, NovoGrad
from lightning_novograd.optim.novograd.functional import novograd


def step(param, grad, fused):
    """One step on copies; what it makes of the weights."""
    weight, moment, second = param.clone(), torch.zeros_like(param), torch.zeros(())
    novograd(
        [weight], [grad], [moment], [second], [], fused=fused, lr=0.1, beta1=0.9, beta2=0.5, eps=1e-8,
        weight_decay=0.01, grad_averaging=False, amsgrad=False, luc=False, luc_trust=1e-3, luc_eps=1e-8, maximize=False,
    )  # fmt: skip
    return weight


PARAM, GRAD = torch.linspace(1, 2, 6), torch.linspace(-1, 1, 6)


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("transform", ["make_fx", "functionalize", "jvp"])
def test_transforms_see_the_step(transform, fused, kernels):
    expected = step(PARAM, GRAD, fused=False)
    if transform == "make_fx":
        found = make_fx(lambda p, g: step(p, g, fused))(PARAM, GRAD)(PARAM, GRAD)
    elif transform == "functionalize":
        found = torch.func.functionalize(lambda p, g: step(p, g, fused))(PARAM, GRAD)
    else:
        found, _ = torch.func.jvp(lambda p: step(p, GRAD, fused), (PARAM,), (torch.ones_like(PARAM),))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


class Written(TorchDispatchMode):
    """The memory that operations write to."""

    def __init__(self):
        super().__init__()
        self.addresses = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.addresses |= {t.data_ptr() for t in (value if isinstance(value, list) else [value])}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, LARC], ids=["alone", "larc"])
def test_a_dispatch_mode_sees_the_weights_written(wrap, kernels):
    params = [torch.nn.Parameter(torch.linspace(1, 2, 6)), torch.nn.Parameter(torch.linspace(2, 3, 4))]
    optimizer = wrap(NovoGrad(params, lr=0.1))
    for param in params:
        param.grad = torch.ones_like(param)
    with Written() as written:
        optimizer.step()
    assert {param.data_ptr() for param in params} <= written.addresses
