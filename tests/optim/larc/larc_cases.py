"""What LARC's tests share: optimizers to wrap, small layers with gradients, and comparisons to the last bit."""

import pytest
import torch

from lightning_novograd.optim import Composite, NovoGrad

SGD, AdamW = torch.optim.SGD, torch.optim.AdamW
INNER = {
    "sgd": lambda params: SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "sgd_fused": lambda params: SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-3, fused=True),
    "sgd_foreach": lambda params: SGD(params, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "adamw": lambda params: AdamW(params, lr=1e-2),
    "adamw_fused": lambda params: AdamW(params, lr=1e-2, fused=True),
    "novograd": lambda params: NovoGrad(params, lr=1e-2, betas=(0.9, 0.5), weight_decay=1e-3),
    "composite": lambda params: Composite(
        [NovoGrad(params[:1], lr=1e-2, weight_decay=1e-3), SGD(params[1:], lr=0.1, momentum=0.9)]
    ),
}
every_inner = pytest.mark.parametrize("inner", INNER)
SHAPES = [(4, 3), (2, 3, 2), (7,)]


def make_params(seed=0, dtype=torch.float32, **options):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype=dtype, **options))
        for shape in SHAPES
    ]


def set_grads(params, step, scale=1.0):
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params:
        p.grad = (scale * torch.randn(p.shape, generator=generator, dtype=torch.float64)).to(p.dtype)


def run(optimizer, params, steps, first=0):
    for step in range(first, first + steps):
        set_grads(params, step)
        optimizer.step()


def assert_same(params, others):
    for p, other in zip(params, others, strict=True):
        torch.testing.assert_close(p, other, rtol=0, atol=0)


def assert_same_state(one, other):
    states = [[o.state[p] for group in o.param_groups for p in group["params"]] for o in (one, other)]
    torch.testing.assert_close(*states, rtol=0, atol=0)


def assert_shares(larc):
    assert larc.param_groups is larc.optimizer.param_groups
    assert larc.state is larc.optimizer.state
    assert larc.defaults is larc.optimizer.defaults
