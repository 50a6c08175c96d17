r"""LARC's fused CPU workers: SGD under target gradient and NovoGrad under target update, without copies.

Both go through the kernel of torch's own fused SGD, layer by layer while the layer is in the cache. With a layer's
factor :math:`f` and the group's dampening :math:`d`,

- SGD under target gradient is :math:`m \leftarrow \mu m + (1 - d) f (g + \lambda w)`: what the kernel does with a
  dampening of :math:`1 - (1 - d) f`. No gradient is copied, and none is written.
- NovoGrad's step is :math:`\gamma m`, so its length is known before the weights move: NovoGrad is run with a learning
  rate of 0, which changes its moments only, and then :math:`w \leftarrow w - f \gamma m`. No weights are copied.

`fused_cpu` says what the kernel gets wrong; it is given float32 layers whose tensors are contiguous. Values differ
from those of the general path in their rounding only. Where the C++ kernels have been built, `larc_kernels` takes these
layers instead.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim.optimizer import Optimizer

from lightning_novograd.optim.kernels.cpu import library
from lightning_novograd.optim.larc import native
from lightning_novograd.optim.larc.factors import cachefuls, gradient_factors, larc_options, update_factors
from lightning_novograd.optim.larc.native import Factors, ParamGroup, are_plain
from lightning_novograd.optim.norms import cpu_squared_norm
from lightning_novograd.optim.novograd.optimizer import NovoGrad

Worker = Callable[[Optimizer, ParamGroup, Tensor], tuple[Factors, list[Tensor]]]

_sgd_kernel: Callable[..., None] | None = getattr(torch, "_fused_sgd_", None)

# The kernel is told 1 - share; for smaller shares of the gradient it would lose digits.
_SMALLEST_SHARE = 1e-8


def fused_worker(optimizer: Optimizer, target: str, group: ParamGroup) -> Worker | None:
    """The worker for a param group of LARC's; it returns factors, and the layers that it leaves to others.

    Its third argument is a vector that the caller keeps between steps, for temporaries.

    As with torch's own workers, `foreach=True` or `fused=False` in the group asks for another one.

    Args:
        optimizer: the wrapped optimizer.
        target: "gradient" or "update".
        group: one of its param groups, all on the CPU and none sharded.

    """
    if not group["larc"] or group.get("foreach") or group.get("fused") is False:
        return None
    built = library.load() is not None and are_plain(group["params"])
    if type(optimizer) is torch.optim.SGD and target == "gradient":
        if built:
            return native.sgd_step
        return _sgd_step if _sgd_kernel and not group["nesterov"] and not group["maximize"] else None
    if type(optimizer) is NovoGrad and target == "update":
        if built:
            return native.novograd_step
        return _novograd_step if _sgd_kernel and not group["luc"] else None
    if type(optimizer) in (torch.optim.Adam, torch.optim.AdamW) and target == "update":
        return native.adam_step if built and not group["amsgrad"] else None
    return None


def _split(optimizer: Optimizer, group: ParamGroup, moment: str) -> tuple[list[Tensor], list[Tensor]]:
    layers: list[Tensor] = []
    others: list[Tensor] = []
    for p in group["params"]:
        fits = _fits_kernel(p, p.grad, optimizer.state.get(p, {}).get(moment))
        (layers if fits else others).append(p)
    return layers, others


def _fits_kernel(param: Tensor, grad: Tensor | None, moment: Tensor | None) -> bool:
    tensors = [param, grad] if moment is None else [param, grad, moment]
    return all(
        t is not None and t.dtype == torch.float32 and t.is_contiguous() and t.shape == param.shape and not t.is_neg()
        for t in tensors
    )


def _sgd_step(optimizer: Optimizer, group: ParamGroup, scratch: Tensor) -> tuple[Factors, list[Tensor]]:
    fitting, others = _split(optimizer, group, "momentum_buffer")
    return [(layers, _sgd_cacheful(optimizer, group, layers)) for layers in cachefuls(fitting)], others


def _sgd_cacheful(optimizer: Optimizer, group: ParamGroup, layers: list[Tensor]) -> Tensor:
    lr, momentum, weight_decay = float(group["lr"]), group["momentum"], group["weight_decay"]
    grads = [p.grad for p in layers if p.grad is not None]
    weight_norms, grad_norms = _norms(layers), _norms(grads)
    factors = gradient_factors(weight_norms, grad_norms, weight_decay=weight_decay, **larc_options(group, grad_norms))
    updated = list(layers)
    # A factor of 0 keeps a zero gradient free of decay, as in apex.
    for param, grad, factor in zip(layers, grads, factors.masked_fill(grad_norms == 0, 0.0).tolist(), strict=True):
        if momentum == 0:
            _descend(param, grad, lr * factor, weight_decay)
            continue
        state = optimizer.state[param]
        moment, share = state.get("momentum_buffer"), factor * (1 - group["dampening"])
        if moment is None:
            moment = state["momentum_buffer"] = torch.zeros_like(param)
            share = factor  # torch does not dampen the first gradient
        if share == 0 or abs(share) > _SMALLEST_SHARE:
            _kernel(param, grad, [moment], lr, weight_decay, momentum, 1 - share)
            updated.append(moment)
        else:
            moment.mul_(momentum).add_(grad, alpha=share).add_(param, alpha=share * weight_decay)
            param.add_(moment, alpha=-lr)
    increment_version(updated)
    return factors


def _novograd_step(optimizer: Optimizer, group: ParamGroup, scratch: Tensor) -> tuple[Factors, list[Tensor]]:
    fitting, others = _split(optimizer, group, "exp_avg")
    return [(layers, _novograd_cacheful(optimizer, group, layers)) for layers in cachefuls(fitting)], others


def _novograd_cacheful(optimizer: Optimizer, group: ParamGroup, layers: list[Tensor]) -> Tensor:
    lr = float(group["lr"])
    weight_norms = _norms(layers)
    optimizer.param_groups = [{**group, "params": layers, "lr": 0.0}]
    optimizer.step()
    moments = [optimizer.state[param]["exp_avg"] for param in layers]
    step_norms = lr * _norms(moments)
    factors = update_factors(weight_norms, step_norms, **larc_options(group, step_norms))
    for param, moment, factor in zip(layers, moments, factors.tolist(), strict=True):
        _descend(param, moment, lr * factor)
    increment_version(layers)
    return factors


def _norms(tensors: list[Tensor]) -> Tensor:
    return torch.stack([cpu_squared_norm(t) for t in tensors]).sqrt()


def _descend(param: Tensor, direction: Tensor, lr: float, weight_decay: float = 0.0) -> None:
    _kernel(param, direction, [], lr, weight_decay, 0.0, 0.0)


def _kernel(
    param: Tensor,
    grad: Tensor,
    moments: list[Tensor],
    lr: float,
    weight_decay: float,
    momentum: float,
    dampening: float,
) -> None:
    assert _sgd_kernel is not None
    _sgd_kernel(
        [param],
        [grad],
        moments,
        weight_decay=weight_decay,
        momentum=momentum,
        lr=lr,
        dampening=dampening,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )
