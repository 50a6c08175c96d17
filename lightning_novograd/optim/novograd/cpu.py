r"""The fused CPU worker: one pass over each layer, through the kernel of torch's own fused SGD.

With :math:`a = s / d`, NovoGrad's update is that of SGD with momentum, scaled layer by layer:

.. math::
    m \leftarrow \beta_1 m + a \left( g + \frac{s \lambda}{a} w \right), \qquad w \leftarrow w - \gamma m

so torch's kernel does it when told a dampening of :math:`1 - a` and a weight decay of :math:`s \lambda / a`. A layer's
norm is taken just before its update, which then finds the gradient in the cache. Scalars are Python floats: on a CPU
there is nothing to wait for. Layers that the kernel would get wrong (`kernels/cpu/torch_sgd.py` says which) are
updated by ordinary in-place operations.

Where there are the C++ kernels, one of them takes the contiguous float32 layers instead, all in one call.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from lightning_novograd.optim.kernels.cpu import library
from lightning_novograd.optim.kernels.cpu.plain import unsuited
from lightning_novograd.optim.kernels.cpu.torch_sgd import SMALLEST_SHARE, fits, fused_sgd_step, has_fused_sgd
from lightning_novograd.optim.norms import accumulation_dtype, cpu_squared_norm
from lightning_novograd.optim.novograd.layers import Layers
from lightning_novograd.optim.novograd.options import Options
from lightning_novograd.optim.novograd.single import single_tensor_novograd

# For larger a the kernel, which is told lambda / a, would lose digits of lambda.
_LARGEST_FACTOR = 1e20
_CHUNK = 1 << 20  # elements of half precision that are widened at a time


def fused_cpu_novograd(
    layers: Layers, options: Options, grad_scale: Tensor | None = None, found_inf: Tensor | None = None
) -> None:
    """One step over CPU layers; `layers.grad_sq_norms` are those of the gradients before `grad_scale` divides them."""
    if found_inf is not None and found_inf.item():
        return
    scale = 1.0 if grad_scale is None else grad_scale.item()
    kernels = library.load()
    # With luc, a layer that is spread over processes needs the others' norms in the middle of the step.
    if kernels is not None and not (options.luc and layers.wholes is not None):
        others, _ = kernel_step(kernels, layers, options, scale)
        if not others:
            return
        layers = layers.take(others)
    if options.luc:
        single_tensor_novograd(layers if scale == 1.0 else _unscaled(layers, scale), options)
    else:
        _step_layer_by_layer(layers, options, None if grad_scale is None else scale)


def kernel_step(
    kernels: Any, layers: Layers, options: Options, scale: float = 1.0, larc: list[float] | None = None
) -> tuple[list[int], list[float]]:
    """One step of the C++ kernel; returns the indices of layers that it leaves to others, and LARC's factors for all.

    Args:
        kernels: what `library.load` returned.
        layers: all of them; it takes those that it can.
        options: of their param group.
        scale: what gradients are divided by.
        larc: trust coefficient, clip, eps and min_update of LARC around the step; None: no LARC.

    """
    max_exp_avg_sqs = layers.max_exp_avg_sqs if options.amsgrad else []
    left = unsuited(layers.params, layers.grads, layers.exp_avgs, layers.exp_avg_sqs, max_exp_avg_sqs)
    if left:
        return _step_all_but(left, kernels, layers, options, scale, larc)
    # All are stepped, here or by others. Afterwards the counters would come from memory once more.
    increment_version([*layers.params, *layers.exp_avgs, *layers.exp_avg_sqs, *max_exp_avg_sqs])
    others, factors = kernels.novograd_step_.default(
        layers.params,
        layers.grads,
        layers.exp_avgs,
        layers.exp_avg_sqs,
        max_exp_avg_sqs,
        [norm.item() for norm in layers.grad_sq_norms or ()],
        options.beta1,
        options.beta2,
        float(options.lr),
        options.decay,
        options.eps,
        options.signed_averaging,
        scale,
        [options.luc_trust, options.luc_eps] if options.luc else [],
        larc or [],
    )
    return others, factors


def _step_all_but(
    left: list[int], kernels: Any, layers: Layers, options: Options, scale: float, larc: list[float] | None
) -> tuple[list[int], list[float]]:
    """The same for all layers but those at the indices `left`, which are left to others."""
    given = [i for i in range(len(layers.params)) if i not in set(left)]
    others, given_factors = kernel_step(kernels, layers.take(given), options, scale, larc)
    factors = [1.0] * len(layers.params)
    for i, factor in zip(given, given_factors, strict=True):
        factors[i] = factor
    return sorted([*left, *(given[i] for i in others)]), factors


def _step_layer_by_layer(layers: Layers, options: Options, scale: float | None) -> None:
    """One step without `luc`, in the kernel of torch's fused SGD where it can take a layer."""
    beta1, beta2, eps, amsgrad, maximize = options.beta1, options.beta2, options.eps, options.amsgrad, options.maximize
    averaging, decay, lr = options.averaging, options.decay, float(options.lr)
    grad_sq_norms, divisor = layers.grad_sq_norms, 1.0 if scale is None else scale
    second_moments = torch.stack(layers.exp_avg_sqs).tolist()
    maxima = torch.stack(layers.max_exp_avg_sqs).tolist() if amsgrad else second_moments
    updated: list[Tensor] = []
    has_kernel = has_fused_sgd() and beta1 != 0  # without momentum it takes no moments
    for i, (param, grad, exp_avg) in enumerate(zip(layers.params, layers.grads, layers.exp_avgs, strict=True)):
        norm = cpu_squared_norm(grad) if grad_sq_norms is None else grad_sq_norms[i]
        sq_norm = (norm if scale is None else norm / scale**2).item()
        second_moment = second_moments[i]
        second_moment = sq_norm if second_moment == 0 else beta2 * second_moment + (1 - beta2) * sq_norm
        second_moments[i] = second_moment
        if amsgrad:
            # As torch.maximum, and unlike max, this keeps a NaN.
            second_moment = maxima[i] if maxima[i] > second_moment or maxima[i] != maxima[i] else second_moment
            maxima[i] = second_moment
        denom = math.sqrt(second_moment) + eps
        factor = averaging / (denom * divisor) if denom else 0.0

        if has_kernel and SMALLEST_SHARE < factor < _LARGEST_FACTOR and fits(param, grad, exp_avg):
            fused_sgd_step(param, grad, exp_avg, lr, decay / factor, beta1, 1 - factor, maximize)
            updated += (param, exp_avg)
        else:
            _update_in_place(param, grad, exp_avg, beta1, -factor if maximize else factor, decay, lr)
    increment_version(updated)

    for exp_avg_sq, second_moment in zip(layers.exp_avg_sqs, second_moments, strict=True):
        exp_avg_sq.fill_(second_moment)
    if amsgrad:
        for max_exp_avg_sq, maximum in zip(layers.max_exp_avg_sqs, maxima, strict=True):
            max_exp_avg_sq.fill_(maximum)


def _unscaled(layers: Layers, scale: float) -> Layers:
    """The layers with copies of their gradients, divided by `scale`."""
    norms = layers.grad_sq_norms
    return replace(
        layers,
        grads=[grad.to(accumulation_dtype(grad.dtype)) / scale for grad in layers.grads],
        grad_sq_norms=None if norms is None else [norm / scale**2 for norm in norms],
    )


def _update_in_place(
    param: Tensor, grad: Tensor, exp_avg: Tensor, beta1: float, factor: float, decay: float, lr: float
) -> None:
    dtype = accumulation_dtype(param.dtype)
    tensors = (param, grad, exp_avg)
    chunks = [tensors]
    if param.dtype != dtype and all(t.is_contiguous() for t in tensors):
        chunks = list(zip(*(t.view(-1).split(_CHUNK) for t in tensors), strict=True))
    for stored_weight, narrow_grad, stored_moment in chunks:
        weight, moment = stored_weight.to(dtype), stored_moment.to(dtype)
        moment.mul_(beta1).add_(narrow_grad.to(dtype), alpha=factor)
        if decay != 0:
            moment.add_(weight, alpha=decay)
        weight.add_(moment, alpha=-lr)
        if weight is not stored_weight:
            stored_weight.copy_(weight)
        if moment is not stored_moment:  # it may be of another dtype than its weight
            stored_moment.copy_(moment)
