r"""The fused CPU worker: one pass over each layer, through the kernel of torch's own fused SGD.

With :math:`a = s / d`, NovoGrad's update is that of SGD with momentum, scaled layer by layer:

.. math::
    m \leftarrow \beta_1 m + a \left( g + \frac{s \lambda}{a} w \right), \qquad w \leftarrow w - \gamma m

so `torch._fused_sgd_` does it when told a dampening of :math:`1 - a` and a weight decay of :math:`s \lambda / a`. A
layer's norm is taken just before its update, which then finds the gradient in the cache. Scalars are Python floats: on
a CPU there is nothing to wait for.

That kernel ignores strides, skips blocks of half-precision tensors and leaves version counters as they are (torch
2.13). So it gets only float32 layers whose tensors are contiguous, and the counters are advanced here; all other layers
are updated by ordinary in-place operations.

Where the C++ kernels of `cpu_kernel` have been built, one of them takes those float32 layers instead, all in one call.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from lightning_novograd.optim.kernels.cpu import library
from lightning_novograd.optim.norms import accumulation_dtype, cpu_squared_norm
from lightning_novograd.optim.novograd.optimizer import _single_tensor_novograd

_sgd_kernel: Callable[..., None] | None = getattr(torch, "_fused_sgd_", None)

# The kernel is told 1 - a and lambda / a; outside of this range of a, float32 would lose digits of a or of lambda.
_FACTORS = (1e-8, 1e20)
_CHUNK = 1 << 20  # elements of half precision that are widened at a time


def _fused_cpu_novograd(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    grad_sq_norms: list[Tensor] | None,
    layers: list[Tensor] | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    *,
    amsgrad: bool,
    grad_averaging: bool,
    luc: bool,
    luc_trust: float,
    luc_eps: float,
    beta1: float,
    beta2: float,
    lr: float | Tensor,
    weight_decay: float,
    eps: float,
    maximize: bool,
    capturable: bool,
    differentiable: bool,
) -> None:
    if found_inf is not None and found_inf.item():
        return
    scale = 1.0 if grad_scale is None else grad_scale.item()
    options: dict[str, Any] = {
        "amsgrad": amsgrad,
        "grad_averaging": grad_averaging,
        "luc": luc,
        "luc_trust": luc_trust,
        "luc_eps": luc_eps,
        "beta1": beta1,
        "beta2": beta2,
        "lr": lr,
        "weight_decay": weight_decay,
        "eps": eps,
        "maximize": maximize,
    }
    kernels = library.load()
    # With luc, a layer that is spread over processes needs the others' norms in the middle of the step.
    if kernels is not None and not (luc and layers is not None):
        lists = (params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, grad_sq_norms)
        others, _ = kernel_step(kernels, *lists, scale, **options)
        if not others:
            return
        params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs = ([ts[i] for i in others if ts] for ts in lists[:5])
        grad_sq_norms = grad_sq_norms and [grad_sq_norms[i] for i in others]
        layers = layers and [layers[i] for i in others]
    if luc:
        if scale != 1.0:
            grads = [grad.to(accumulation_dtype(grad.dtype)) / scale for grad in grads]
            grad_sq_norms = None if grad_sq_norms is None else [n / scale**2 for n in grad_sq_norms]
        lists = (params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, grad_sq_norms)
        _single_tensor_novograd(
            *lists, layers, None, None, capturable=capturable, differentiable=differentiable, **options
        )
        return

    lr = float(lr)
    averaging = 1 - beta1 if grad_averaging else 1.0
    decay = averaging * weight_decay
    second_moments = torch.stack(exp_avg_sqs).tolist()
    maxima = torch.stack(max_exp_avg_sqs).tolist() if amsgrad else second_moments
    updated: list[Tensor] = []
    sgd_kernel = _sgd_kernel if beta1 != 0 else None  # without momentum it takes no buffers
    for i, (param, grad, exp_avg) in enumerate(zip(params, grads, exp_avgs, strict=True)):
        norm = cpu_squared_norm(grad) if grad_sq_norms is None else grad_sq_norms[i]
        sq_norm = (norm if grad_scale is None else norm / scale**2).item()
        second_moment = second_moments[i]
        second_moment = sq_norm if second_moment == 0 else beta2 * second_moment + (1 - beta2) * sq_norm
        second_moments[i] = second_moment
        if amsgrad:
            # As torch.maximum, and unlike max, this keeps a NaN.
            second_moment = maxima[i] if maxima[i] > second_moment or maxima[i] != maxima[i] else second_moment
            maxima[i] = second_moment
        denom = math.sqrt(second_moment) + eps
        factor = averaging / (denom * scale) if denom else 0.0

        if sgd_kernel is not None and _FACTORS[0] < factor < _FACTORS[1] and _fits_kernel(param, grad, exp_avg):
            sgd_kernel(
                [param],
                [grad],
                [exp_avg],
                weight_decay=decay / factor,
                momentum=beta1,
                lr=lr,
                dampening=1 - factor,
                nesterov=False,
                maximize=maximize,
                is_first_step=False,
            )
            updated += (param, exp_avg)
        else:
            _update_in_place(param, grad, exp_avg, beta1, -factor if maximize else factor, decay, lr)
    increment_version(updated)

    for exp_avg_sq, second_moment in zip(exp_avg_sqs, second_moments, strict=True):
        exp_avg_sq.fill_(second_moment)
    if amsgrad:
        for max_exp_avg_sq, maximum in zip(max_exp_avg_sqs, maxima, strict=True):
            max_exp_avg_sq.fill_(maximum)


def kernel_step(
    kernels: Any,
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    grad_sq_norms: list[Tensor] | None = None,
    scale: float = 1.0,
    larc: list[float] | None = None,
    *,
    amsgrad: bool,
    grad_averaging: bool,
    luc: bool,
    luc_trust: float,
    luc_eps: float,
    beta1: float,
    beta2: float,
    lr: float | Tensor,
    weight_decay: float,
    eps: float,
    maximize: bool,
) -> tuple[list[int], list[float]]:
    """One step of the C++ kernel; returns the indices of layers that it leaves to others, and LARC's factors for all.

    `larc` is what `larc_cpu` makes of LARC's options, or None: no LARC.
    """
    averaging = 1 - beta1 if grad_averaging else 1.0
    others, factors = kernels.novograd_step_.default(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        max_exp_avg_sqs if amsgrad else [],
        grad_sq_norms or [],
        beta1,
        beta2,
        float(lr),
        averaging * weight_decay,
        eps,
        -averaging if maximize else averaging,
        scale,
        [luc_trust, luc_eps] if luc else [],
        larc or [],
    )
    return others, factors


def _fits_kernel(param: Tensor, grad: Tensor, exp_avg: Tensor) -> bool:
    return (
        param.dtype == grad.dtype == exp_avg.dtype == torch.float32
        and param.is_contiguous()
        and grad.is_contiguous()
        and exp_avg.is_contiguous()
        and param.shape == grad.shape == exp_avg.shape  # or the kernel would read past their ends
        and not (param.is_neg() or grad.is_neg() or exp_avg.is_neg())
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
            stored_moment.copy_(moment)
