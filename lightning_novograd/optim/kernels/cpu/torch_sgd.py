r"""torch's own fused SGD kernel for the CPU, one layer at a time: what it is told, and what it gets wrong.

Per call it does, in one pass over the layer and with :math:`s` = 1 - `dampening`,

.. math::
    m \leftarrow \mu m + s \left( g + \lambda w \right), \qquad w \leftarrow w - \gamma m

The kernel (torch 2.13) ignores strides, skips blocks of half-precision tensors and reads past the end of a moment that
is smaller than its weight: it may be given only what `fits`. It leaves version counters as they are: whoever calls it
advances them, for all layers at once (`torch.autograd.graph.increment_version`).
"""

from collections.abc import Callable

import torch
from torch import Tensor

# A torch release may lack it.
_kernel: Callable[..., None] | None = getattr(torch, "_fused_sgd_", None)

# It is told 1 - s; for smaller shares of the gradient, s would lose digits in that.
SMALLEST_SHARE = 1e-8


def has_fused_sgd() -> bool:
    """Whether this torch release has the kernel."""
    return _kernel is not None


def fits(param: Tensor, grad: Tensor, moment: Tensor | None = None) -> bool:
    """Whether the kernel treats these tensors as any other operation would."""
    moment = grad if moment is None else moment
    return (
        param.dtype == grad.dtype == moment.dtype == torch.float32
        and param.is_contiguous()
        and grad.is_contiguous()
        and moment.is_contiguous()
        and param.shape == grad.shape == moment.shape
        and not (param.is_neg() or grad.is_neg() or moment.is_neg())
        and not grad._is_zerotensor()  # as forward-mode differentiation makes them, without memory
    )


def fused_sgd_step(
    param: Tensor,
    grad: Tensor,
    moment: Tensor | None,
    lr: float,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    dampening: float = 0.0,
    maximize: bool = False,
) -> None:
    r"""One step of SGD on one layer, in place.

    Args:
        param: :math:`w`.
        grad: :math:`g`, which is not written.
        moment: :math:`m`; None if `momentum` is 0, and only then.
        lr: :math:`\gamma`.
        weight_decay: :math:`\lambda`.
        momentum: :math:`\mu`.
        dampening: :math:`1 - s`; not used without momentum.
        maximize: whether the gradient counts negatively; the weight decay never does.

    """
    assert _kernel is not None
    _kernel(
        [param],
        [grad],
        [] if moment is None else [moment],
        weight_decay=weight_decay,
        momentum=momentum,
        lr=lr,
        dampening=dampening,
        nesterov=False,
        maximize=maximize,
        is_first_step=False,
    )
