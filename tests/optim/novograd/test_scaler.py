"""A compiled fused step under a GradScaler: values of the uncompiled one, and a skipped step changes nothing."""

import copy

import pytest
import torch
from optim_db import DTYPES, layers, set_grads

from lightning_novograd.optim import NovoGrad

OPTIONS = [{}, {"luc": True}, {"amsgrad": True, "maximize": True}, {"grad_averaging": True, "weight_decay": 0.1}]


def scaled_step(optimizer, params, step, scaler, compiled, overflow=False):
    set_grads(params, step)
    for param in params.values():
        param.grad.mul_(scaler.get_scale())
    if overflow:
        params["vector"].grad[0] = torch.inf
    scaler.scale(torch.zeros(()))  # as it would the loss
    take = optimizer.step
    if compiled:
        optimizer.step = torch.compile(optimizer.step, backend="eager")
    scaler.step(optimizer)
    scaler.update()
    optimizer.step = take


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_compiled_step_equals_the_uncompiled(dtype, options):
    torch._dynamo.reset()
    runs = []
    for compiled in (False, True):
        params = layers(dtype, ["matrix", "conv", "vector"])
        optimizer = NovoGrad(params.values(), lr=0.1, fused=True, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in (2, 4):  # every layer has a gradient in these
            scaled_step(optimizer, params, step, scaler, compiled)
        before = copy.deepcopy([params, [optimizer.state[p] for p in params.values()]])
        scaled_step(optimizer, params, 2, scaler, compiled, overflow=True)
        assert scaler.get_scale() == 512.0
        for (kind, param), state in zip(params.items(), before[1], strict=True):
            assert torch.equal(param, before[0][kind])
            assert all(torch.equal(optimizer.state[param][key], value) for key, value in state.items())
        scaled_step(optimizer, params, 4, scaler, compiled)
        assert not hasattr(optimizer, "grad_scale")
        runs.append(params)
    for kind, param in runs[0].items():
        torch.testing.assert_close(runs[1][kind], param)


def test_a_compiled_fused_step_is_what_it_was_without_a_scaler():
    torch._dynamo.reset()
    left, right = (layers(torch.float32, ["matrix", "vector"]) for _ in range(2))
    fused = NovoGrad(left.values(), lr=0.1, fused=True)
    foreach = NovoGrad(right.values(), lr=0.1, foreach=True)
    step = torch.compile(fused.step, backend="eager")
    for index in (2, 4):
        set_grads(left, index)
        set_grads(right, index)
        step()
        foreach.step()
    for kind, param in left.items():
        torch.testing.assert_close(param, right[kind])
