"""The single-tensor worker: the formulas layer by layer, and the only one that autograd can run through."""

import torch
from torch import Tensor

from lightning_novograd.optim.norms import accumulation_dtype
from lightning_novograd.optim.novograd.layers import Layers
from lightning_novograd.optim.novograd.luc import clipped_step_sizes
from lightning_novograd.optim.novograd.options import Options


def single_tensor_novograd(
    layers: Layers, options: Options, grad_scale: Tensor | None = None, found_inf: Tensor | None = None
) -> None:
    """One step, layer by layer; `grad_scale` and `found_inf` must be None."""
    assert grad_scale is None, "grad_scale is for the fused workers"
    assert found_inf is None, "found_inf is for the fused workers"
    layers = layers.with_norms()
    assert layers.grad_sq_norms is not None
    params, exp_avgs, lr, differentiable = layers.params, layers.exp_avgs, options.lr, options.differentiable
    step_sizes: list[Tensor] | None = None

    moments, weights = [], []
    for i, param in enumerate(params):
        exp_avg_sq, sq_norm = layers.exp_avg_sqs[i], layers.grad_sq_norms[i]
        # The first gradient is recognized by its value, as in the paper and in NeMo: the device decides, nothing waits.
        moved = options.beta2 * exp_avg_sq + (1 - options.beta2) * sq_norm
        second_moment = torch.where(exp_avg_sq == 0, sq_norm, moved)
        exp_avg_sq.copy_(second_moment)
        if options.amsgrad:
            maximum = layers.max_exp_avg_sqs[i].clone() if differentiable else layers.max_exp_avg_sqs[i]
            second_moment = torch.maximum(maximum, second_moment)
            layers.max_exp_avg_sqs[i].copy_(second_moment)
        denom = second_moment.sqrt() + options.eps
        # With eps = 0, a layer that never saw a nonzero gradient has g / d = 0 / 0; it must not move.
        grad_factor = options.signed_averaging / denom.masked_fill(denom == 0, torch.inf)

        # Half precision is widened (the others are not copied) and rounds once, when it is stored below. Autograd needs
        # copies: it keeps what it will multiply with.
        dtype = accumulation_dtype(param.dtype)
        grad = layers.grads[i].to(dtype)
        moment, weight = (t.to(dtype, copy=differentiable) for t in (exp_avgs[i], param))
        moment.mul_(options.beta1).addcmul_(grad, grad_factor)
        if options.weight_decay != 0:
            moment.add_(weight, alpha=options.decay)
        moments.append(moment)
        weights.append(weight)

    if options.luc:
        measured = [weight.clone() for weight in weights] if differentiable else weights
        step_sizes = clipped_step_sizes(measured, moments, layers.wholes, options)
    for i, param in enumerate(params):
        moment, weight = moments[i], weights[i]
        step_size = lr if step_sizes is None else step_sizes[i]
        if isinstance(step_size, Tensor):
            weight.addcmul_(moment, step_size.to(weight), value=-1)
        else:
            weight.add_(moment, alpha=-step_size)
        if weight is not param:
            param.copy_(weight)
        if moment is not exp_avgs[i]:
            exp_avgs[i].copy_(moment)
