"""LARC's target gradient: the wrapped optimizer steps along scaled and decayed copies of the gradients."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_novograd.optim.kernels.tracing import is_traced, is_transformed
from lightning_novograd.optim.larc.factors import Factors, gradient_factors, larc_options, numbers
from lightning_novograd.optim.larc.memory import Scratch
from lightning_novograd.optim.larc.pieces import ParamGroup, stackable, with_gradient
from lightning_novograd.optim.norms import local_shard, placed_like, squared_norms


def scaled_gradient_step(optimizer: Optimizer, groups: list[ParamGroup], scratch: Scratch) -> Factors:
    """One step of the wrapped optimizer with the gradients of `groups` scaled; returns the layers' factors."""
    layers = [p for group in groups for p in with_gradient(group)]
    scaled, factors = _scaled_gradients(groups, layers, scratch)
    with _in_place_of_gradients(layers, scaled), _without_weight_decay(groups):
        optimizer.step()
    return factors


def _scaled_gradients(groups: list[ParamGroup], layers: list[Tensor], scratch: Scratch) -> tuple[list[Tensor], Factors]:
    """Copies of the layers' gradients with weight decay, times the layers' factors; and the factors."""
    grads = [placed_like(p.grad, p) for p in layers if p.grad is not None]
    sq_norms = squared_norms([*layers, *grads])
    # memory that is kept would be a constant of the graph, or another mode's
    scaled = [torch.empty_like(grad) for grad in grads] if is_traced() else scratch.like(grads)
    result: Factors = []
    for group, indices in stackable(groups):
        weight_norms = torch.stack([sq_norms[i] for i in indices]).sqrt()
        grad_norms = torch.stack([sq_norms[len(layers) + i] for i in indices]).sqrt()
        weight_decay = group.get("weight_decay", 0.0)
        factors = gradient_factors(
            weight_norms, grad_norms, weight_decay=weight_decay, **larc_options(group, grad_norms)
        )
        result.append(([layers[i] for i in indices], factors))
        # an optimizer that maximizes negates what it gets, the decay with it
        decay = -weight_decay if group.get("maximize") else weight_decay
        # A factor of 0 keeps a zero gradient free of decay, as in apex.
        for i, factor in zip(indices, numbers(factors.masked_fill(grad_norms == 0, 0.0)), strict=True):
            out, grad, weight = (local_shard(t[i]) for t in (scaled, grads, layers))
            if is_transformed():
                scaled[i] = _decayed_and_scaled(grad, weight, decay, factor)
            else:
                _decayed_and_scaled(grad, weight, decay, factor, out)
    return scaled, result


def _decayed_and_scaled(
    grad: Tensor, weight: Tensor, weight_decay: float, factor: float | Tensor, out: Tensor | None = None
) -> Tensor:
    """`factor * (grad + weight_decay * weight)`."""
    if weight_decay == 0:
        return torch.mul(grad, factor, out=out)
    return torch.add(grad, weight, alpha=weight_decay, out=out).mul_(factor)


@contextmanager
def _in_place_of_gradients(layers: list[Tensor], grads: list[Tensor]) -> Iterator[None]:
    """Inside, the layers have `grads`; afterwards their own gradients again."""
    originals = [p.grad for p in layers]
    try:
        for p, grad in zip(layers, grads, strict=True):
            p.grad = grad
        yield
    finally:
        for p, original in zip(layers, originals, strict=True):
            p.grad = original


@contextmanager
def _without_weight_decay(groups: list[ParamGroup]) -> Iterator[None]:
    """Inside, the groups' `weight_decay` is 0."""
    decays = [(group, group["weight_decay"]) for group in groups if "weight_decay" in group]
    try:
        for group, _ in decays:
            group["weight_decay"] = 0.0
        yield
    finally:
        for group, weight_decay in decays:
            group["weight_decay"] = weight_decay
