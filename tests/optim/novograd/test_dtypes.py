"""A model widened or narrowed in mid-training: moments of another dtype than their weights, in every worker."""

from itertools import permutations

import pytest
import torch
from optim_db import DTYPES, WORKERS, assert_close, layers, set_grads
from reference import ReferenceNovoGrad

from lightning_novograd.optim import NovoGrad
from lightning_novograd.optim.norms import accumulation_dtype

pytestmark = pytest.mark.usefixtures("kernels")  # each test with and without the C++ kernels

KINDS = ["matrix", "conv", "vector", "scalar", "empty", "transposed", "every-other", "channels-last"]
PAIRS = list(permutations(DTYPES.values(), 2))  # dtypes before and after
OPTIONS = {
    "defaults": {"lr": 0.05},
    "decay": {"lr": 0.05, "weight_decay": 0.1, "amsgrad": True},
    "luc": {"lr": 0.05, "luc": True, "luc_trust": 0.02},
}


def cast_data(params, dtype):
    """What `Module.to` does."""
    for param in params.values():
        param.grad = None
        param.data = param.data.to(dtype)


def swap(params, dtype):
    """What `Module.to` does under `torch.__future__.set_swap_module_params_on_conversion`."""
    for param in params.values():
        param.grad = None
        torch.utils.swap_tensors(param, torch.nn.Parameter(param.detach().to(dtype)))


def assert_follows_the_reference(optimizer, params, options, dtype, moment_dtype, steps=(2, 4)):
    """`dtype` is that of the weights; rounding is judged one step at a time, where every layer has a gradient."""
    reference = ReferenceNovoGrad(list(params.values()), **options)
    wide, stored = torch.finfo(accumulation_dtype(dtype)), torch.finfo(moment_dtype)
    coarser = moment_dtype if stored.eps > wide.eps else accumulation_dtype(dtype)
    for step in steps:
        set_grads(params, step)
        reference.adopt(list(params.values()), optimizer)
        optimizer.step()
        reference.step([param.grad for param in params.values()])
        for index, (kind, param) in enumerate(params.items()):
            where, state = f"{kind} after step {step}", optimizer.state[param]
            assert (param.dtype, state["exp_avg"].dtype) == (dtype, moment_dtype)
            assert_close(param, reference.params[index], dtype, f"weight of {where}", reference.param_terms[index])
            expected, terms = reference.exp_avgs[index], reference.exp_avg_terms[index]
            assert_close(state["exp_avg"], expected, coarser, f"moment of {where}", terms)
            for key, value in (
                ("exp_avg_sq", reference.exp_avg_sqs[index]),
                ("max_exp_avg_sq", reference.max_exp_avg_sqs[index]),
            ):
                if key in state:
                    assert state[key].dtype == accumulation_dtype(dtype)
                    assert state[key].shape == ()
                    expected = torch.tensor(value, dtype=torch.float64)
                    assert_close(state[key], expected, accumulation_dtype(dtype), f"{key} of {where}")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.parametrize(("before", "after"), PAIRS, ids=str)
def test_moments_go_on_in_the_dtype_that_they_have(before, after, worker, options):
    params = layers(before, KINDS)
    optimizer = NovoGrad(params.values(), **options, **WORKERS[worker])
    set_grads(params, 4)
    optimizer.step()
    cast_data(params, after)
    assert_follows_the_reference(optimizer, params, options, after, moment_dtype=before)


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.parametrize(("before", "after"), PAIRS, ids=str)
def test_swapped_parameters_keep_their_moments(before, after, worker):
    params = layers(before, KINDS)
    optimizer = NovoGrad(params.values(), lr=0.05, **WORKERS[worker])
    set_grads(params, 4)
    optimizer.step()
    swap(params, after)
    assert_follows_the_reference(optimizer, params, {"lr": 0.05}, after, moment_dtype=before)


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.parametrize(("before", "after"), PAIRS, ids=str)
def test_a_state_saved_in_another_dtype_takes_that_of_the_model(before, after, worker):
    saved, params = layers(before, KINDS), layers(after, KINDS)
    optimizer = NovoGrad(saved.values(), lr=0.05, amsgrad=True, **WORKERS[worker])
    set_grads(saved, 4)
    optimizer.step()
    loaded = NovoGrad(params.values(), **WORKERS[worker])
    loaded.load_state_dict(optimizer.state_dict())
    assert_follows_the_reference(loaded, params, {"lr": 0.05, "amsgrad": True}, after, moment_dtype=after)


@pytest.mark.parametrize("worker", WORKERS)
def test_layers_of_which_only_some_were_widened(worker):
    params = layers(torch.bfloat16, ["matrix", "conv", "vector"])
    optimizer = NovoGrad(params.values(), lr=0.05, **WORKERS[worker])
    set_grads(params, 4)
    optimizer.step()
    cast_data({"vector": params["vector"]}, torch.float32)
    fresh = layers(torch.float32, ["depthwise"])
    optimizer.add_param_group({"params": fresh.values()})
    params |= fresh
    set_grads(params, 2)
    moments = {kind: optimizer.state[param]["exp_avg"].clone() for kind, param in params.items() if kind not in fresh}
    optimizer.step()
    for kind, moment in moments.items():
        assert not torch.equal(optimizer.state[params[kind]]["exp_avg"], moment), f"the momentum of {kind} stands still"
