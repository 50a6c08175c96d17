"""LARC around every worker of SGD and NovoGrad, over the table of inputs, against its equations in float64."""

import copy
import pickle

import pytest
import torch
from optim_db import STEPS, WORKERS, assert_close, layers, set_grads

from lightning_novograd.optim import NovoGrad
from lightning_novograd.optim.larc.optimizer import LARC

pytestmark = pytest.mark.usefixtures("kernels")  # each test with and without the C++ kernels

INNER = {
    "sgd": lambda params, worker: torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=0.01, **worker),
    "sgd-nesterov": lambda params, worker: torch.optim.SGD(params, lr=0.1, momentum=0.5, nesterov=True, **worker),
    "sgd-maximize": lambda params, worker: torch.optim.SGD(params, lr=0.1, weight_decay=0.1, maximize=True, **worker),
    "novograd": lambda params, worker: NovoGrad(params, lr=0.02, betas=(0.9, 0.5), weight_decay=1e-3, **worker),
    "novograd-luc": lambda params, worker: NovoGrad(params, lr=0.02, luc=True, luc_trust=0.05, **worker),
}
OPTIONS = {
    "defaults": {},
    "tight": {"trust_coefficient": 1e-3},
    "wide": {"trust_coefficient": 1e3},
    "scale": {"trust_coefficient": 0.05, "clip": False},
    "min-update": {"trust_coefficient": 1e-3, "min_update": 0.05},
    "scale-min-update": {"trust_coefficient": 1e-3, "clip": False, "min_update": 0.05},
    "large-eps": {"trust_coefficient": 0.1, "eps": 0.1},
    "zero-eps": {"eps": 0.0},
    "zero-trust": {"trust_coefficient": 0.0},
}
CASES = [
    (inner, target)
    for inner in INNER
    for target in ("gradient", "update")
    if target == "update" or not inner.startswith("novograd")
]
# Every option in float64, every worker in float32. torch's fused SGD is left out: it cannot take up a layer whose first
# gradient comes late.
TABLE = [
    *((torch.float64, *case, options, "default") for case in CASES for options in OPTIONS),
    *(
        (torch.float32, *case, options, worker)
        for case in CASES
        for options, worker in [("scale", "default"), *(("tight", worker) for worker in WORKERS)]
        if worker != "fused" or case[0].startswith("novograd")
    ),
]


class Reference:
    """The equations of LARC, a layer at a time, around a bare optimizer in float64."""

    def __init__(self, optimizer, target, trust_coefficient=0.02, clip=True, eps=1e-8, min_update=0.0):
        self.optimizer, self.target = optimizer, target
        self.trust_coefficient, self.clip, self.eps, self.min_update = trust_coefficient, clip, eps, min_update
        self.group = optimizer.param_groups[0]
        self.weight_decay = self.group["weight_decay"]
        if target == "gradient":
            self.group["weight_decay"] = 0.0

    def factor(self, weight_norm, size, zero):
        if zero:
            return 1.0
        if weight_norm == 0:
            return self.min_update or 1.0
        if size + self.eps == 0:
            return 1.0
        ratio = self.trust_coefficient * weight_norm / (size + self.eps)
        return min(max(ratio / self.group["lr"], self.min_update), 1.0) if self.clip else max(ratio, self.min_update)

    def step(self):
        moving = [p for p in self.group["params"] if p.grad is not None]
        before = [p.detach().clone() for p in moving]
        norms = [float(torch.linalg.vector_norm(p.detach())) for p in moving]
        if self.target == "gradient":
            for p, norm in zip(moving, norms, strict=True):
                grad_norm = float(torch.linalg.vector_norm(p.grad))
                if grad_norm > 0:
                    f = self.factor(norm, grad_norm + self.weight_decay * norm, zero=False)
                    # weights decay also where the optimizer ascends, which negates all that it gets
                    sign = -1 if self.group["maximize"] else 1
                    p.grad = f * (p.grad + sign * self.weight_decay * p.detach())
            self.optimizer.step()
            return
        self.optimizer.step()
        for p, b, norm in zip(moving, before, norms, strict=True):
            change = p.detach() - b
            length = float(torch.linalg.vector_norm(change))
            f = self.factor(norm, length / self.group["lr"], zero=length == 0)
            p.detach().copy_(b + f * change)


def build(inner, params, worker, target, options):
    return LARC(INNER[inner](params.values(), WORKERS[worker]), **options, target=target)


@pytest.mark.parametrize(("dtype", "inner", "target", "options", "worker"), TABLE, ids=str)
def test_every_layer_follows_the_equations(dtype, inner, target, options, worker):
    params = layers(dtype)
    exact = {kind: torch.nn.Parameter(p.detach().double()) for kind, p in params.items()}
    larc = build(inner, params, worker, target, OPTIONS[options])
    reference = Reference(INNER[inner](exact.values(), WORKERS["single"]), target, **OPTIONS[options])
    for step in range(STEPS):
        set_grads(params, step)
        for kind, p in params.items():
            exact[kind].grad = None if p.grad is None else p.grad.double()
        larc.step()
        reference.step()
        for kind, p in params.items():
            if dtype == torch.float32 and (target, options) == ("update", "scale"):
                # a lengthened step has the rounding of the weights lengthened too
                torch.testing.assert_close(p.detach().double(), exact[kind].detach(), rtol=0, atol=1e-4)
            else:
                assert_close(p, exact[kind].detach(), dtype, f"{kind} after step {step + 1}")


@pytest.mark.parametrize("worker", ["single", "foreach"])
@pytest.mark.parametrize(("inner", "target"), [c for c in CASES if c[0] != "novograd-luc"])
def test_complex_layers_follow_the_equations(inner, target, worker):
    params = layers(torch.complex128)
    exact = {kind: torch.nn.Parameter(p.detach().clone()) for kind, p in params.items()}
    larc = build(inner, params, worker, target, OPTIONS["tight"])
    reference = Reference(INNER[inner](exact.values(), WORKERS["single"]), target, **OPTIONS["tight"])
    for step in range(STEPS):
        set_grads(params, step)
        set_grads(exact, step)
        larc.step()
        reference.step()
        for kind, p in params.items():
            torch.testing.assert_close(p, exact[kind], rtol=1e-12, atol=1e-14, msg=f"{kind} after step {step + 1}")


@pytest.mark.parametrize(("inner", "target"), CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_stays_finite_and_within_its_rounding_of_the_bound(dtype, inner, target):
    params = layers(dtype)
    larc = build(inner, params, "default", target, {"trust_coefficient": 0.1})
    for step in range(STEPS):
        set_grads(params, step)
        before = {kind: p.detach().double() for kind, p in params.items()}
        larc.step()
        for kind, p in params.items():
            assert p.isfinite().all(), kind
            if target == "update":
                change, weight = (p.detach().double() - before[kind]).norm(), before[kind].norm()
                assert change <= (0.1 + 2 * torch.finfo(dtype).eps) * weight, f"{kind} in step {step + 1}"


@pytest.mark.parametrize("duplicate", ["state_dict", "deepcopy", "pickle"])
@pytest.mark.parametrize(("inner", "target"), CASES)
def test_a_copy_continues_bit_for_bit(inner, target, duplicate):
    dtype = torch.bfloat16
    params = layers(dtype)
    larc = build(inner, params, "default", target, OPTIONS["tight"])
    for step in range(2):
        set_grads(params, step)
        larc.step()
        larc.zero_grad()
    if duplicate == "state_dict":
        others = layers(dtype)
        with torch.no_grad():
            torch._foreach_copy_(list(others.values()), list(params.values()))
        other = build(inner, others, "default", target, {})
        other.load_state_dict(copy.deepcopy(larc.state_dict()))  # which holds larc's own tensors
    else:
        other = copy.deepcopy(larc) if duplicate == "deepcopy" else pickle.loads(pickle.dumps(larc))
        others = dict(zip(params, other.param_groups[0]["params"], strict=True))
    for step in range(2, STEPS):
        for optimizer, mine in ((larc, params), (other, others)):
            set_grads(mine, step)
            optimizer.step()
        for kind, p in params.items():
            assert torch.equal(p, others[kind]), f"{kind} after step {step + 1}"
