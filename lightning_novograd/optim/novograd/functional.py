"""NovoGrad as a function: `novograd` has torch's long signature, `update_layers` chooses the worker."""

from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter

import torch
from torch import Tensor
from torch.optim.optimizer import _default_to_fused_or_foreach, _get_capturable_supported_devices

from lightning_novograd.optim.kernels.tracing import is_traced, is_transformed
from lightning_novograd.optim.norms import any_sharded
from lightning_novograd.optim.novograd.cpu import fused_cpu_novograd
from lightning_novograd.optim.novograd.foreach import multi_tensor_novograd
from lightning_novograd.optim.novograd.layers import Layers
from lightning_novograd.optim.novograd.options import Options
from lightning_novograd.optim.novograd.probe import may_launch, require_launch
from lightning_novograd.optim.novograd.scaled import scaled_novograd
from lightning_novograd.optim.novograd.single import single_tensor_novograd

# layers, options, grad_scale, found_inf; the last two may be other than None only for fused workers
Worker = Callable[[Layers, Options, Tensor | None, Tensor | None], None]


def novograd(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    grad_sq_norms: list[Tensor] | None = None,
    foreach: bool | None = None,
    fused: bool | None = None,
    capturable: bool = False,
    differentiable: bool = False,
    has_complex: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
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
) -> None:
    r"""Functional form of one NovoGrad step over the layers of a param group; see :class:`NovoGrad`.

    Updates `params`, `exp_avgs`, `exp_avg_sqs` and, with `amsgrad`, `max_exp_avg_sqs` in place; never writes `grads`.
    `grad_sq_norms` are the gradients' squared norms where the caller knows them (for DTensors: of the whole layers).
    `has_complex` says whether any layer is complex: it is treated as a real one with one more dimension. `grad_scale`
    (what gradients are to be divided by) and `found_inf` (nonzero: change nothing) are for the fused workers only.
    """
    layers = Layers(
        params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, grad_sq_norms=grad_sq_norms, has_complex=has_complex
    )
    options = Options(
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        grad_averaging=grad_averaging,
        amsgrad=amsgrad,
        luc=luc,
        luc_trust=luc_trust,
        luc_eps=luc_eps,
        maximize=maximize,
        capturable=capturable,
        differentiable=differentiable,
    )
    update_layers(layers, options, foreach=foreach, fused=fused, grad_scale=grad_scale, found_inf=found_inf)


def update_layers(
    layers: Layers,
    options: Options,
    *,
    foreach: bool | None,
    fused: bool | None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One NovoGrad step over the layers of a param group, by the worker that is asked for or else the fastest."""
    if layers.params:
        worker, layers, options = chosen_worker(layers, options, foreach=foreach, fused=fused)
        worker(layers, options, grad_scale, found_inf)


def chosen_worker(
    layers: Layers, options: Options, *, foreach: bool | None, fused: bool | None
) -> tuple[Worker, Layers, Options]:
    """The worker of a param group that has layers, and what it is to be called with; where none fits, this raises."""
    if options.capturable and not torch.compiler.is_compiling():
        supported = _get_capturable_supported_devices()
        if not all(p.device.type in supported for p in layers.params):
            raise AssertionError(f"If capturable=True, params must be on supported devices: {supported}.")
    if any_sharded(layers.params):
        if options.differentiable:
            raise RuntimeError("NovoGrad does not support differentiable=True with DTensor parameters")
        layers = layers.local()
    if layers.has_complex:
        layers = layers.real()

    options = _with_lr_at_hand(options, layers.params)

    if foreach is None and fused is None:
        fused, foreach = _default_worker(layers.params, options)
    elif fused:
        _require_fused_workers(layers.params, options)
    if fused and not is_traced():
        worker: Worker = _fused_novograd
    elif fused:
        worker = scaled_novograd  # nothing can look into the kernels
    else:
        worker = multi_tensor_novograd if foreach else single_tensor_novograd
    return worker, layers, options


def _with_lr_at_hand(options: Options, params: list[Tensor]) -> Options:
    """The options with a tensor lr from elsewhere moved to the layers, once for all of them.

    A GPU's lr comes to layers on another GPU without a synchronization. To a GPU a CPU's lr goes as a number, for which
    nothing waits; in a CUDA graph that number stays what it was. Layers on a CPU have to wait for a GPU's lr.
    """
    lr = options.lr
    if not isinstance(lr, Tensor) or lr.requires_grad or is_traced():
        return options
    devices = _devices(params)
    if devices == {lr.device}:
        return options
    if lr.is_cpu or any(device.type == "cpu" for device in devices):
        return replace(options, lr=float(lr))
    if len(devices) == 1:
        return replace(options, lr=lr.to(devices.pop(), non_blocking=True))
    return options


def _fused_novograd(layers: Layers, options: Options, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
    """Hand the layers to the fused worker of their device."""
    devices = _device_types(layers.params)
    for device in devices:
        taken = layers
        if len(devices) > 1:
            taken = layers.take(_on(device, layers.params))
        _fused_worker(device)(taken, options, grad_scale, found_inf)


def _device_types(params: list[Tensor]) -> set[str]:
    if all(map(attrgetter("is_cpu"), params)):  # without an object for each tensor's device
        return {"cpu"}
    return {device.type for device in _devices(params)}


def _devices(params: list[Tensor]) -> set[torch.device]:
    return set(map(attrgetter("device"), params))


def _on(device: str, params: list[Tensor]) -> list[int]:
    """Indices of the parameters on devices of this type."""
    return [i for i, param in enumerate(params) if param.device.type == device]


def _fused_worker(device: str) -> Worker:
    if device == "cpu":
        return fused_cpu_novograd
    from lightning_novograd.optim.novograd.cuda import fused_cuda_novograd  # needs Triton

    return fused_cuda_novograd


def _require_fused_workers(params: list[Tensor], options: Options) -> None:
    """Raise, before anything has changed, if a device of the parameters lacks its fused worker."""
    if is_traced():
        return
    devices = _device_types(params)
    if not devices <= {"cpu", "cuda"}:
        found = ", ".join(sorted(devices - {"cpu", "cuda"}))
        raise RuntimeError(f"`fused=True` needs parameters on CPU or CUDA; found {found}: leave it unset")
    if "cuda" in devices:
        require_launch(_cuda_params(params, devices), options.luc)


def _default_worker(params: list[Tensor], options: Options) -> tuple[bool, bool]:
    """(fused, foreach) for the fastest worker that is correct for these parameters."""
    if options.differentiable or not set(map(type, params)) <= {Tensor, torch.nn.Parameter}:
        return False, False
    if is_traced():
        return False, not is_transformed()
    devices = _device_types(params)
    fused = devices <= {"cpu", "cuda"} and (
        "cuda" not in devices or may_launch(_cuda_params(params, devices), options.luc)
    )
    return fused, not fused and _default_to_fused_or_foreach(params, options.differentiable)[1]


def _cuda_params(params: list[Tensor], devices: set[str]) -> list[Tensor]:
    return params if devices == {"cuda"} else [params[i] for i in _on("cuda", params)]
