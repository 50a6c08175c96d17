"""What stands in for a fused worker under a GradScaler, where there is no kernel: another worker around it.

Nothing is read back: inside of torch.compile, too, the device decides whether the step counts.
"""

from dataclasses import replace

import torch
from torch import Tensor

from lightning_novograd.optim.kernels.tracing import is_transformed
from lightning_novograd.optim.norms import accumulation_dtype
from lightning_novograd.optim.novograd.foreach import multi_tensor_novograd
from lightning_novograd.optim.novograd.layers import Layers
from lightning_novograd.optim.novograd.options import Options
from lightning_novograd.optim.novograd.single import single_tensor_novograd


def scaled_novograd(
    layers: Layers, options: Options, grad_scale: Tensor | None = None, found_inf: Tensor | None = None
) -> None:
    """One step; gradients are unscaled in copies, a skipped step is undone."""
    if grad_scale is not None:
        layers = _unscaled(layers, grad_scale)
    maxima = layers.max_exp_avg_sqs if options.amsgrad else []
    state = [*layers.params, *layers.exp_avgs, *layers.exp_avg_sqs, *maxima]
    before = [] if found_inf is None else [tensor.clone() for tensor in state]
    (single_tensor_novograd if is_transformed() else multi_tensor_novograd)(layers, options)
    for tensor, old in zip(state, before, strict=bool(before)):
        assert found_inf is not None
        tensor.copy_(torch.where(found_inf.to(tensor.device).reshape(()) != 0, old, tensor))


def _unscaled(layers: Layers, grad_scale: Tensor) -> Layers:
    """The layers with copies of their gradients, divided by `grad_scale`."""
    grads, norms = layers.grads, layers.grad_sq_norms
    factors = [grad_scale.to(grad.device, accumulation_dtype(grad.dtype)).reciprocal() for grad in grads]
    return replace(
        layers,
        grads=[grad.to(accumulation_dtype(grad.dtype)) * f for grad, f in zip(grads, factors, strict=True)],
        grad_sq_norms=None
        if norms is None
        else [norm * f.reshape(()).square() for norm, f in zip(norms, factors, strict=True)],
    )
