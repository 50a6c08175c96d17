"""LARC's way into the C++ kernels of `cpp/`, where they have been built: all layers of a param group in one call.

They take float32 layers whose tensors are contiguous and lie on the CPU.

- `sgd_step` (target gradient), `novograd_step` and `adam_step` (target update) take norms, factor and step batch by
  batch of layers, while these are in the cache; no layer is copied.
- `save` and `limit` serve target update around any other optimizer, whose step lies between the two.

`scratch` and `before` are vectors that the caller keeps between steps; they grow as needed.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from lightning_novograd.optim.kernels.cpu import library
from lightning_novograd.optim.novograd.cpu import kernel_step
from lightning_novograd.optim.novograd.optimizer import NovoGrad

ParamGroup = dict[str, Any]
Factors = list[tuple[list[Tensor], Tensor]]


def are_plain(layers: list[Tensor]) -> bool:
    """Whether none is of a subclass of Tensor, which may have its memory elsewhere, as DTensors have."""
    return set(map(type, layers)) <= {Tensor, torch.nn.Parameter}


def new_scratch() -> Tensor:
    """An empty vector for `scratch` or `before`, whatever defaults and modes are in force."""
    with torch.inference_mode(False):
        return torch.empty(0, dtype=torch.float32, device="cpu")


def sgd_step(optimizer: Optimizer, group: ParamGroup, scratch: Tensor) -> tuple[Factors, list[Tensor]]:
    """One step of `torch.optim.SGD` under target gradient; returns factors and the layers that are left to others."""
    layers = [p for p in group["params"] if p.grad is not None]
    others: list[Tensor] = []
    misfits = _kernels().misfits.default(layers, [p.grad for p in layers])
    if misfits:
        layers, others = _parted(layers, misfits)
    moments, shares = [], []
    if group["momentum"] != 0:
        for param in layers:
            state = optimizer.state[param]
            moment, share = state.get("momentum_buffer"), 1.0 - group["dampening"]
            if moment is None:
                moment = state["momentum_buffer"] = torch.zeros_like(param)
                share = 1.0  # torch does not dampen the first gradient
            moments.append(moment)
            shares.append(share)
    factors, left = _kernels().larc_sgd_step_.default(
        layers,
        [p.grad for p in layers],
        moments,
        shares,
        float(group["lr"]),
        group["weight_decay"],
        group["momentum"],
        group["nesterov"],
        group["maximize"],
        _options(group),
    )
    return _result(layers, factors, left, others)


def adam_step(optimizer: Optimizer, group: ParamGroup, scratch: Tensor) -> tuple[Factors, list[Tensor]]:
    """One step of `torch.optim.Adam` or `AdamW` under target update; returns factors and layers left to others."""
    assert isinstance(optimizer, torch.optim.Adam)
    params: list[Tensor] = []
    grads: list[Tensor] = []
    exp_avgs: list[Tensor] = []
    exp_avg_sqs: list[Tensor] = []
    steps: list[Tensor] = []
    optimizer._init_group(group, params, grads, exp_avgs, exp_avg_sqs, [], steps)
    beta1, beta2 = group["betas"]
    factors, left = _kernels().larc_adam_step_.default(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        steps,
        float(beta1),
        float(beta2),
        group["eps"],
        float(group["lr"]),
        group["weight_decay"],
        isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay", False),
        group["maximize"],
        _options(group),
        scratch,
    )
    return _result(params, factors, left)


def novograd_step(optimizer: Optimizer, group: ParamGroup, scratch: Tensor) -> tuple[Factors, list[Tensor]]:
    """One step of NovoGrad under target update; returns factors and the layers that are left to others."""
    assert isinstance(optimizer, NovoGrad)
    params: list[Tensor] = []
    grads: list[Tensor] = []
    exp_avgs: list[Tensor] = []
    exp_avg_sqs: list[Tensor] = []
    max_exp_avg_sqs: list[Tensor] = []
    lists = (params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs)
    optimizer._init_group(group, *lists)
    beta1, beta2 = group["betas"]
    same = ("amsgrad", "grad_averaging", "luc", "luc_trust", "luc_eps", "lr", "weight_decay", "eps", "maximize")
    options = {name: group[name] for name in same}
    left, factors = kernel_step(_kernels(), *lists, larc=_options(group), beta1=beta1, beta2=beta2, **options)
    return _result(params, factors, left)


def save(before: Tensor, layers: list[Tensor]) -> list[int]:
    """Copy the layers into `before` and return where each begins.

    Nothing is copied, and nothing returned, where there are no kernels or they cannot take a layer.
    """
    kernels = None if torch.compiler.is_compiling() or not are_plain(layers) else library.load()
    return [] if kernels is None else kernels.larc_save_.default(before, layers)


def limit(before: Tensor, starts: list[int], layers: list[Tensor], group: ParamGroup) -> Tensor:
    """Scale the way from what `save` has copied to where the layers are now; returns the factors."""
    options = _options(group)
    factors = _kernels().larc_limit_.default(before, starts, layers, float(group["lr"]), options)
    return torch.tensor(factors, dtype=torch.float32)


def _kernels() -> Any:
    kernels = library.load()
    assert kernels is not None
    return kernels


def _options(group: ParamGroup) -> list[float]:
    names = ("larc_trust_coefficient", "larc_clip", "larc_eps", "larc_min_update")
    return [float(group[name]) for name in names]


def _result(
    layers: list[Tensor], factors: list[float], left: list[int], others: list[Tensor] | None = None
) -> tuple[Factors, list[Tensor]]:
    taken, left_layers = _parted(layers, left)
    pairs = [(taken, torch.tensor(_parted(factors, left)[0], dtype=torch.float32))] if taken else []
    return pairs, [*(others or []), *left_layers]


def _parted(values: list[Any], indices: list[int]) -> tuple[list[Any], list[Any]]:
    """The values at other indices, and those at `indices`."""
    chosen = set(indices)
    return [v for i, v in enumerate(values) if i not in chosen], [values[i] for i in indices]
