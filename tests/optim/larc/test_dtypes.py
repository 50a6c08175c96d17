"""LARC around a model widened or narrowed in mid-training: the wrapped optimizer's momentum goes on."""

from itertools import permutations, product

import pytest
import torch
from optim.larc.test_conformance import CASES, INNER, Reference
from optim_db import DTYPES, WORKERS, layers, set_grads

from lightning_novograd.optim.larc import LARC

pytestmark = pytest.mark.usefixtures("kernels")  # each test with and without the C++ kernels

KINDS = ["matrix", "conv", "vector", "scalar", "empty", "transposed", "every-other"]
PAIRS = list(permutations(DTYPES.values(), 2))  # dtypes before and after
# torch's own fused and foreach SGD refuse a moment of another dtype than its weight
TABLE = [
    (*case, worker)
    for case, worker in product(CASES, WORKERS)
    if worker in ("single", "default") or case[0].startswith("novograd")
]
# Where a step works in half precision, it rounds: the gradient (times its factor, plus the decay), the moment (times
# beta, plus the gradient; once more with nesterov), the weight, and the way from the old weight, which is shortened.
# Each errs by half of eps at most, and they rarely go one way: half precision gets no more than by assert_close.
ROUNDINGS = 8
HALF = {torch.bfloat16: 1.6e-2, torch.float16: 1e-3}


def tolerance(dtype):
    """Relative to what a value is added up from."""
    return min(ROUNDINGS * torch.finfo(dtype).eps / 2, HALF.get(dtype, 1.0))


@pytest.mark.parametrize(("inner", "target", "worker"), TABLE)
@pytest.mark.parametrize(("before", "after"), PAIRS, ids=str)
def test_the_next_step_follows_the_equations(before, after, inner, target, worker):
    params = layers(before, KINDS)
    larc = LARC(INNER[inner](params.values(), WORKERS[worker]), trust_coefficient=0.1, target=target)
    set_grads(params, 4)
    larc.step()
    for param in params.values():
        param.grad = None
        param.data = param.data.to(after)

    exact = {kind: torch.nn.Parameter(p.detach().to(torch.float64, copy=True)) for kind, p in params.items()}
    reference = Reference(INNER[inner](exact.values(), WORKERS["single"]), target, trust_coefficient=0.1)
    for kind, p in params.items():
        state = {key: value.to(torch.float64, copy=True) for key, value in larc.state[p].items()}
        reference.optimizer.state[exact[kind]] = state
    old = {kind: p.detach().clone() for kind, p in exact.items()}
    set_grads(params, 2)
    for kind, p in params.items():
        exact[kind].grad = p.grad.double()
    larc.step()
    reference.step()

    rounding = max(map(tolerance, (before, after)))
    for kind, p in params.items():
        if not p.numel():
            continue
        change = (exact[kind] - old[kind]).detach().abs().max()
        error = (p.detach().double() - exact[kind].detach()).abs()
        assert (error <= rounding * (old[kind].abs() + change)).all(), kind
        for key in ("momentum_buffer", "exp_avg"):
            if key in larc.state[p]:
                moment, expected = larc.state[p][key], reference.optimizer.state[exact[kind]][key]
                assert moment.dtype == before
                terms = expected.abs().max()
                assert ((moment.double() - expected).abs() <= rounding * terms).all(), f"moment of {kind}"
