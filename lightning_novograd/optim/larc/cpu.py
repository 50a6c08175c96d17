r"""LARC's fused CPU workers: SGD under target gradient and NovoGrad under target update, without copies.

Both go through the kernel of torch's own fused SGD, layer by layer while the layer is in the cache. With a layer's
factor :math:`f` and the group's dampening :math:`d`,

- SGD under target gradient is :math:`m \leftarrow \mu m + (1 - d) f (g + \lambda w)`: what the kernel does with a
  dampening of :math:`1 - (1 - d) f`. No gradient is copied, and none is written.
- NovoGrad's step is :math:`\gamma m`, so its length is known before the weights move: a NovoGrad step with a learning
  rate of 0 changes the moments only, and then :math:`w \leftarrow w - f \gamma m`. No weights are copied.

Layers that the kernel would get wrong (`kernels/cpu/torch_sgd.py` says which) are left to others. Values differ from
those of the general path in their rounding only. Where the C++ kernels have been built, `native` takes these layers
instead.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import SGD, Optimizer

from lightning_novograd.optim.kernels.cpu.torch_sgd import SMALLEST_SHARE, fits, fused_sgd_step
from lightning_novograd.optim.larc.factors import Factors, gradient_factors, larc_options, update_factors
from lightning_novograd.optim.larc.pieces import ParamGroup, cache_sized
from lightning_novograd.optim.norms import cpu_squared_norm
from lightning_novograd.optim.novograd.functional import update_layers
from lightning_novograd.optim.novograd.layers import Layers
from lightning_novograd.optim.novograd.options import Options


def sgd_step(optimizer: SGD, group: ParamGroup) -> tuple[Factors, list[Tensor]]:
    """One step of SGD under target gradient; returns factors and the layers that are left to others."""
    taken, others = _split(optimizer, group, "momentum_buffer")
    return [(piece, _sgd_step(optimizer, group, piece)) for piece in cache_sized(taken)], others


def _sgd_step(optimizer: SGD, group: ParamGroup, layers: list[Tensor]) -> Tensor:
    """The same for layers that the kernel takes and that fit in a cache; returns their factors."""
    lr, momentum, weight_decay = float(group["lr"]), group["momentum"], group["weight_decay"]
    grads = [p.grad for p in layers if p.grad is not None]
    weight_norms, grad_norms = _norms(layers), _norms(grads)
    factors = gradient_factors(weight_norms, grad_norms, weight_decay=weight_decay, **larc_options(group, grad_norms))
    updated = list(layers)
    # A factor of 0 keeps a zero gradient free of decay, as in apex.
    for param, grad, factor in zip(layers, grads, factors.masked_fill(grad_norms == 0, 0.0).tolist(), strict=True):
        if momentum == 0:
            fused_sgd_step(param, grad, None, lr * factor, weight_decay)
            continue
        state = optimizer.state[param]
        moment, share = state.get("momentum_buffer"), factor * (1 - group["dampening"])
        if moment is None:
            moment = state["momentum_buffer"] = torch.zeros_like(param)
            share = factor  # torch does not dampen the first gradient
        if share == 0 or abs(share) > SMALLEST_SHARE:
            fused_sgd_step(param, grad, moment, lr, weight_decay, momentum, 1 - share)
            updated.append(moment)
        else:
            moment.mul_(momentum).add_(grad, alpha=share).add_(param, alpha=share * weight_decay)
            param.add_(moment, alpha=-lr)
    increment_version(updated)
    return factors


def novograd_step(
    optimizer: Optimizer, group: ParamGroup, layers_of: Callable[[ParamGroup], Layers]
) -> tuple[Factors, list[Tensor]]:
    """One step of NovoGrad under target update; returns factors and the layers that are left to others.

    Args:
        optimizer: the wrapped NovoGrad.
        group: one of its param groups.
        layers_of: its method of that name.

    """
    taken, others = _split(optimizer, group, "exp_avg")
    layers, options = layers_of({**group, "params": taken}), Options.of(group)
    factors: Factors = []
    start = 0
    for piece in cache_sized(taken):
        end = start + len(piece)
        factors.append((piece, _novograd_step(layers.take(range(start, end)), options, group)))
        start = end
    return factors, others


def _novograd_step(layers: Layers, options: Options, group: ParamGroup) -> Tensor:
    """The same for layers that the kernel takes and that fit in a cache; returns their factors."""
    lr = float(options.lr)
    weight_norms = _norms(layers.params)
    _update_moments(layers, options, group)
    step_norms = lr * _norms(layers.exp_avgs)
    factors = update_factors(weight_norms, step_norms, **larc_options(group, step_norms))
    for param, moment, factor in zip(layers.params, layers.exp_avgs, factors.tolist(), strict=True):
        fused_sgd_step(param, moment, None, lr * factor)
    increment_version(layers.params)
    return factors


def _update_moments(layers: Layers, options: Options, group: ParamGroup) -> None:
    """What a NovoGrad step does to the moments, while the weights stay."""
    update_layers(layers, replace(options, lr=0.0), foreach=group["foreach"], fused=group["fused"])


def _split(optimizer: Optimizer, group: ParamGroup, moment: str) -> tuple[list[Tensor], list[Tensor]]:
    """The layers of a param group that the kernel takes, and all others; `moment` is the name of their first moment."""
    taken: list[Tensor] = []
    others: list[Tensor] = []
    for p in group["params"]:
        fitting = p.grad is not None and fits(p, p.grad, optimizer.state.get(p, {}).get(moment))
        (taken if fitting else others).append(p)
    return taken, others


def _norms(tensors: list[Tensor]) -> Tensor:
    return torch.stack([cpu_squared_norm(t) for t in tensors]).sqrt()
