"""The multi-tensor worker: torch's foreach operations over all layers of a device and dtype at once."""

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_novograd.optim.norms import accumulation_dtype
from lightning_novograd.optim.novograd.layers import Layers
from lightning_novograd.optim.novograd.luc import clipped_step_sizes
from lightning_novograd.optim.novograd.options import Options


def multi_tensor_novograd(
    layers: Layers, options: Options, grad_scale: Tensor | None = None, found_inf: Tensor | None = None
) -> None:
    """One step, all layers of a device and dtype at once; `grad_scale` and `found_inf` must be None."""
    assert grad_scale is None, "grad_scale is for the fused workers"
    assert found_inf is None, "found_inf is for the fused workers"
    layers = layers.with_norms()
    for indices in _same_device_and_dtype(layers.params):
        _step(layers.take(indices), options)


def _step(layers: Layers, options: Options) -> None:
    """One step of layers of one device and dtype."""
    assert layers.grad_sq_norms is not None
    lr = options.lr
    second_moments, sq_norms = torch.stack(layers.exp_avg_sqs), torch.stack(layers.grad_sq_norms)
    # The first gradient is recognized by its value, as in the paper and in NeMo: the device decides, nothing waits.
    moved = options.beta2 * second_moments + (1 - options.beta2) * sq_norms
    second_moments = torch.where(second_moments == 0, sq_norms, moved)
    torch._foreach_copy_(layers.exp_avg_sqs, second_moments.unbind())
    if options.amsgrad:
        second_moments = torch.maximum(torch.stack(layers.max_exp_avg_sqs), second_moments)
        torch._foreach_copy_(layers.max_exp_avg_sqs, second_moments.unbind())
    denom = second_moments.sqrt() + options.eps
    # With eps = 0, a layer that never saw a nonzero gradient has g / d = 0 / 0; it must not move.
    grad_factors = options.signed_averaging / denom.masked_fill(denom == 0, torch.inf)

    # Half precision is widened (the others are not copied) and rounds once, when it is stored below.
    dtype = accumulation_dtype(layers.params[0].dtype)
    grads = [grad.to(dtype) for grad in layers.grads]
    moments = [moment.to(dtype) for moment in layers.exp_avgs]
    weights = [weight.to(dtype) for weight in layers.params]
    torch._foreach_mul_(moments, options.beta1)
    torch._foreach_addcmul_(moments, grads, grad_factors.unbind())
    if options.weight_decay != 0:
        torch._foreach_add_(moments, weights, alpha=options.decay)

    if options.luc:
        step_sizes = clipped_step_sizes(weights, moments, layers.wholes, options)
        torch._foreach_addcmul_(weights, moments, step_sizes, value=-1)
    elif isinstance(lr, Tensor):
        step_sizes = [lr.to(weights[0])] * len(weights)
        torch._foreach_addcmul_(weights, moments, step_sizes, value=-1)
    else:
        torch._foreach_add_(weights, moments, alpha=-lr)
    _store(layers.params, weights)
    _store(layers.exp_avgs, moments)


def _store(stored: list[Tensor], computed: list[Tensor]) -> None:
    """Round what was computed in copies to where it is kept; a moment may be of another dtype than its weight."""
    pairs = [(s, c) for s, c in zip(stored, computed, strict=True) if s.dtype != c.dtype]
    if pairs:
        torch._foreach_copy_([s for s, _ in pairs], [c for _, c in pairs])


def _same_device_and_dtype(params: Iterable[Tensor]) -> list[list[int]]:
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, param in enumerate(params):
        groups.setdefault((param.device, param.dtype), []).append(index)
    return list(groups.values())
