"""NovoGrad: stochastic gradient descent with layer-wise normalized gradients.

`NovoGrad` validates, keeps the state and gathers lists; `novograd` chooses a worker; the workers, all of one signature,
do the arithmetic.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import (
    Optimizer,
    ParamsT,
    _default_to_fused_or_foreach,
    _device_dtype_check_for_fused,
    _get_capturable_supported_devices,
    _to_scalar,
    _use_grad_for_differentiable,
)
from torch.utils._triton import has_triton

from lightning_novograd.optim.checkpoint.convert import in_our_format
from lightning_novograd.optim.norms import (
    accumulation_dtype,
    is_sharded,
    local_shard,
    placed_like,
    real_view,
    squared_norms,
)
from lightning_novograd.optim.novograd.validation import check_options, check_same_parameters, refuse_flattened
from lightning_novograd.registry import register_optimizer

__all__ = ["NovoGrad", "novograd"]


@register_optimizer("NovoGrad")
class NovoGrad(Optimizer):
    r"""Stochastic gradient descent with layer-wise normalized gradients and one second moment per layer.

    A layer is one parameter tensor. Per layer and step, with gradient :math:`g`, weights :math:`w`:

    .. math::
        v &\leftarrow \|g\|^2 \text{ if } v = 0 \text{ else } \beta_2 v + (1 - \beta_2) \|g\|^2 \\
        d &= \sqrt{v} + \epsilon \\
        m &\leftarrow \beta_1 m + s \left( g / d + \lambda w \right) \\
        w &\leftarrow w - \gamma m

    Args:
        params: parameters, named parameters or param groups.
        lr: learning rate :math:`\gamma \ge 0`, a float or a one-element tensor.
        betas: :math:`\beta_1, \beta_2 \in [0, 1)`, decay of the first moment and of the second.
        eps: :math:`\epsilon \ge 0`, added to the norm, outside of the square root.
        weight_decay: :math:`\lambda \ge 0`, coupled: it enters the first moment after the normalization.
        grad_averaging: :math:`s = 1 - \beta_1` instead of 1.
        amsgrad: use the running maximum of :math:`v` in :math:`d`.
        luc: clip the layer's learning rate to :math:`\min(\gamma, \tau \|w\| / (\|m\| + \epsilon_l))`.
        luc_trust: :math:`\tau \ge 0` of `luc`.
        luc_eps: :math:`\epsilon_l \ge 0` of `luc`.
        maximize: ascend instead of descend: the gradient counts negatively, the weight decay does not.
        foreach: whether the multi-tensor worker is used. None: whichever worker is fastest for the parameters.
        fused: whether the fused worker is used. None: as for `foreach`.
        capturable: whether `step` may be captured in a CUDA graph; parameters must be on an accelerator.
        differentiable: whether autograd may run through `step`.

    State per parameter: `exp_avg` (:math:`m`: shape, dtype and layout of the parameter), `exp_avg_sq` (:math:`v`:
    0-dim, float32, or float64 for a float64 parameter) and, with `amsgrad`, `max_exp_avg_sq` (as `exp_avg_sq`).

    Arithmetic runs in float32 or wider and rounds once when it is stored; `p.grad` is never written. A layer is a
    whole tensor also where it is a DTensor (FSDP2, HSDP, tensor parallel).

    Raises:
        ValueError: an argument out of range, a parameter flattened by FSDP1 or DeepSpeed, or a state_dict of other
            parameters.
        RuntimeError: sparse gradients, `fused` together with `foreach` or `differentiable`.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = NovoGrad(model.parameters(), lr=0.01, betas=(0.95, 0.25), weight_decay=1e-3)
        >>> model(torch.ones(3, 4)).square().mean().backward()
        >>> optimizer.step()

    Ginsburg et al., *Stochastic Gradient Methods with Layer-wise Adaptive Moments for Training of Deep Networks*,
    https://arxiv.org/abs/1905.11286. The values are those of NeMo's `Novograd`; `docs/numerics.md` lists where this
    and other implementations differ.

    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.95, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        grad_averaging: bool = False,
        amsgrad: bool = False,
        luc: bool = False,
        luc_trust: float = 1e-3,
        luc_eps: float = 1e-8,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "grad_averaging": grad_averaging,
            "amsgrad": amsgrad,
            "luc": luc,
            "luc_trust": luc_trust,
            "luc_eps": luc_eps,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        check_options(defaults)
        self._layer_shapes: set[torch.Size] = set()
        super().__init__(params, defaults)

    def _check_graph_capture(self) -> None:
        if hasattr(self, "_accelerator_graph_capture_health_check"):
            self._accelerator_graph_capture_health_check()
        else:  # its name before torch 2.12
            self._cuda_graph_capture_health_check()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a GradScaler leaves unscaling and skipping to `step`, as it does for torch's fused optimizers."""
        return all(group["fused"] for group in self.param_groups)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group; options that it leaves out take the optimizer's defaults.

        Args:
            param_group: `params` and options.

        Raises:
            ValueError: an option out of range, or parameters that are flattened shards.

        """
        if isinstance(param_group, dict):
            check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)
        for param in self.param_groups[-1]["params"]:
            self._layer_shapes.add(param.shape)
            refuse_flattened(param, self._layer_shapes)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for option, default in self.defaults.items():
                group.setdefault(option, default)
        if "_layer_shapes" not in self.__dict__:
            self._layer_shapes = {param.shape for group in self.param_groups for param in group["params"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; the second moments keep their float32 or float64 also for bf16 parameters.

        Options that the saved groups lack keep the values of this optimizer's defaults.

        Args:
            state_dict: of this optimizer or of NeMo's, timm's or pytorch_optimizer's NovoGrad.

        Raises:
            ValueError: the saved groups or states belong to other parameters, to parameters in another order, or to an
                optimizer that goes on by another formula.

        """
        state_dict = in_our_format(state_dict)
        saved_state: dict[int, dict[str, Any]] = {}
        saved_ids: list[int] = []

        # The base class casts every state to its parameter's dtype; put the second moments back as they were saved.
        def check(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
            check_same_parameters(optimizer, state_dict)
            saved_state.update(state_dict["state"])
            saved_ids.extend(i for group in state_dict["param_groups"] for i in group["params"])

        def restore(optimizer: Optimizer) -> None:
            params = [param for group in optimizer.param_groups for param in group["params"]]
            for param, saved_id in zip(params, saved_ids, strict=True):
                for key in ("exp_avg_sq", "max_exp_avg_sq"):
                    if key in saved_state.get(saved_id, ()):
                        optimizer.state[param][key] = (
                            torch.as_tensor(saved_state[saved_id][key])
                            .to(param.device, accumulation_dtype(param.dtype), copy=True)
                            .reshape(())
                        )

        hooks = [
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _init_group(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        max_exp_avg_sqs: list[Tensor],
    ) -> bool:
        has_complex = False
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.grad.is_sparse:
                raise RuntimeError("NovoGrad does not support sparse gradients; use a dense embedding (sparse=False)")
            has_complex |= torch.is_complex(p)
            state = self.state[p]
            if not state:
                refuse_flattened(p, self._layer_shapes)
                if group["fused"]:
                    _device_dtype_check_for_fused(p)
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros((), dtype=accumulation_dtype(p.dtype), device=p.device)
            if group["amsgrad"] and "max_exp_avg_sq" not in state:
                state["max_exp_avg_sq"] = state["exp_avg_sq"].clone()
            params.append(p)
            grads.append(p.grad)
            exp_avgs.append(state["exp_avg"])
            exp_avg_sqs.append(state["exp_avg_sq"])
            if group["amsgrad"]:
                max_exp_avg_sqs.append(state["max_exp_avg_sq"])
        return has_complex

    @_use_grad_for_differentiable
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform one optimization step.

        Args:
            closure: reevaluates the model and returns the loss; called once, with gradients enabled.

        Returns:
            What the closure returned, else None.

        """
        self._check_graph_capture()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        # All groups are gathered before any is updated: errors change nothing, and the norms of layers that are spread
        # over processes are summed in one all-reduce for the whole optimizer.
        gathered = []
        for group in self.param_groups:
            params: list[Tensor] = []
            grads: list[Tensor] = []
            exp_avgs: list[Tensor] = []
            exp_avg_sqs: list[Tensor] = []
            max_exp_avg_sqs: list[Tensor] = []
            has_complex = self._init_group(group, params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs)
            gathered.append((params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, has_complex))
        sharded_norms = _squared_norms_if_sharded([(params, grads) for params, grads, *_ in gathered])

        for group, lists, sq_norms in zip(self.param_groups, gathered, sharded_norms, strict=True):
            params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, has_complex = lists
            beta1, beta2 = group["betas"]
            novograd(
                params,
                grads,
                exp_avgs,
                exp_avg_sqs,
                max_exp_avg_sqs,
                grad_sq_norms=sq_norms,
                foreach=group["foreach"],
                fused=group["fused"],
                capturable=group["capturable"],
                differentiable=group["differentiable"],
                has_complex=has_complex,
                grad_scale=getattr(self, "grad_scale", None),
                found_inf=getattr(self, "found_inf", None),
                amsgrad=group["amsgrad"],
                grad_averaging=group["grad_averaging"],
                luc=group["luc"],
                luc_trust=group["luc_trust"],
                luc_eps=group["luc_eps"],
                beta1=beta1,
                beta2=beta2,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=group["maximize"],
            )
        return loss


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
    if not params:
        return
    if capturable and not torch.compiler.is_compiling():
        supported = _get_capturable_supported_devices()
        if not all(p.device.type in supported for p in params):
            raise AssertionError(f"If capturable=True, params must be on supported devices: {supported}.")
    layers: list[Tensor] | None = None
    if any(is_sharded(p) for p in params):
        if differentiable:
            raise RuntimeError("NovoGrad does not support differentiable=True with DTensor parameters")
        layers = params
        if grad_sq_norms is None:
            grads = [placed_like(g, p) for g, p in zip(grads, params, strict=True)]
            grad_sq_norms = squared_norms(grads)
        params, grads, exp_avgs = ([local_shard(t) for t in tensors] for tensors in (params, grads, exp_avgs))
    if has_complex:
        params, grads, exp_avgs = ([real_view(t) for t in tensors] for tensors in (params, grads, exp_avgs))

    if foreach is None and fused is None:
        fused, foreach = _default_worker(params, differentiable)
    if fused and not torch.compiler.is_compiling():
        worker: Callable[..., None] = _fused_novograd
    else:
        worker = _multi_tensor_novograd if foreach or fused else _single_tensor_novograd
    worker(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        max_exp_avg_sqs,
        grad_sq_norms,
        layers,
        grad_scale,
        found_inf,
        amsgrad=amsgrad,
        grad_averaging=grad_averaging,
        luc=luc,
        luc_trust=luc_trust,
        luc_eps=luc_eps,
        beta1=beta1,
        beta2=beta2,
        lr=_to_scalar(lr),
        weight_decay=weight_decay,
        eps=eps,
        maximize=maximize,
        capturable=capturable,
        differentiable=differentiable,
    )


def _single_tensor_novograd(
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
    assert grad_scale is None, "grad_scale is for the fused workers"
    assert found_inf is None, "found_inf is for the fused workers"
    if grad_sq_norms is None:
        grad_sq_norms = squared_norms(grads)
    averaging = 1 - beta1 if grad_averaging else 1.0
    step_sizes: list[Tensor] | None = None

    moments, weights = [], []
    for i, param in enumerate(params):
        exp_avg_sq, sq_norm = exp_avg_sqs[i], grad_sq_norms[i]
        # The first gradient is recognized by its value, as in the paper and in NeMo: the device decides, nothing waits.
        second_moment = torch.where(exp_avg_sq == 0, sq_norm, beta2 * exp_avg_sq + (1 - beta2) * sq_norm)
        exp_avg_sq.copy_(second_moment)
        if amsgrad:
            maximum = max_exp_avg_sqs[i].clone() if differentiable else max_exp_avg_sqs[i]
            second_moment = torch.maximum(maximum, second_moment)
            max_exp_avg_sqs[i].copy_(second_moment)
        denom = second_moment.sqrt() + eps
        # With eps = 0, a layer that never saw a nonzero gradient has g / d = 0 / 0; it shall not move.
        grad_factor = (-averaging if maximize else averaging) / denom.masked_fill(denom == 0, torch.inf)

        # Half precision is widened (the others are not copied) and rounds once, when it is stored below. Autograd needs
        # copies: it keeps what it will multiply with.
        dtype = accumulation_dtype(param.dtype)
        grad = grads[i].to(dtype)
        moment, weight = (t.to(dtype, copy=differentiable) for t in (exp_avgs[i], param))
        moment.mul_(beta1).addcmul_(grad, grad_factor)
        if weight_decay != 0:
            moment.add_(weight, alpha=averaging * weight_decay)
        moments.append(moment)
        weights.append(weight)

    if luc:
        measured = [weight.clone() for weight in weights] if differentiable else weights
        step_sizes = _clipped_step_sizes(measured, moments, layers, lr, luc_trust, luc_eps)
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


def _multi_tensor_novograd(
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
    assert grad_scale is None, "grad_scale is for the fused workers"
    assert found_inf is None, "found_inf is for the fused workers"
    if grad_sq_norms is None:
        grad_sq_norms = squared_norms(grads)
    averaging = 1 - beta1 if grad_averaging else 1.0

    for indices in _same_device_and_dtype(params):

        def take(tensors: list[Tensor], indices: list[int] = indices) -> list[Tensor]:
            return [tensors[i] for i in indices]

        second_moments, sq_norms = torch.stack(take(exp_avg_sqs)), torch.stack(take(grad_sq_norms))
        # The first gradient is recognized by its value, as in the paper and in NeMo: the device decides, nothing waits.
        second_moments = torch.where(second_moments == 0, sq_norms, beta2 * second_moments + (1 - beta2) * sq_norms)
        torch._foreach_copy_(take(exp_avg_sqs), second_moments.unbind())
        if amsgrad:
            second_moments = torch.maximum(torch.stack(take(max_exp_avg_sqs)), second_moments)
            torch._foreach_copy_(take(max_exp_avg_sqs), second_moments.unbind())
        denom = second_moments.sqrt() + eps
        # With eps = 0, a layer that never saw a nonzero gradient has g / d = 0 / 0; it shall not move.
        grad_factors = (-averaging if maximize else averaging) / denom.masked_fill(denom == 0, torch.inf)

        # Half precision is widened (the others are not copied) and rounds once, when it is stored below.
        dtype = accumulation_dtype(params[indices[0]].dtype)
        group_grads = [grad.to(dtype) for grad in take(grads)]
        moments = [moment.to(dtype) for moment in take(exp_avgs)]
        weights = [weight.to(dtype) for weight in take(params)]
        torch._foreach_mul_(moments, beta1)
        torch._foreach_addcmul_(moments, group_grads, grad_factors.unbind())
        if weight_decay != 0:
            torch._foreach_add_(moments, weights, alpha=averaging * weight_decay)

        if luc:
            group_layers = None if layers is None else take(layers)
            step_sizes = _clipped_step_sizes(weights, moments, group_layers, lr, luc_trust, luc_eps)
            torch._foreach_addcmul_(weights, moments, step_sizes, value=-1)
        elif isinstance(lr, Tensor):
            step_sizes = [lr.to(weights[0])] * len(weights)
            torch._foreach_addcmul_(weights, moments, step_sizes, value=-1)
        else:
            torch._foreach_add_(weights, moments, alpha=-lr)
        if weights[0] is not params[indices[0]]:
            torch._foreach_copy_(take(params), weights)
            torch._foreach_copy_(take(exp_avgs), moments)


def _fused_novograd(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    grad_sq_norms: list[Tensor] | None,
    layers: list[Tensor] | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    **options: Any,
) -> None:
    """Hand the layers to the fused worker of their device; `options` are the keyword arguments of all workers."""
    lists = (params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, grad_sq_norms, layers)
    devices = {param.device.type for param in params}
    for device in devices:
        if len(devices) == 1:
            taken = list(lists)
        else:
            indices = [i for i, param in enumerate(params) if param.device.type == device]
            taken = [tensors and [tensors[i] for i in indices] for tensors in lists]
        _fused_worker(device)(*taken, grad_scale, found_inf, **options)


def _fused_worker(device: str) -> Callable[..., None]:
    if device == "cpu":
        from lightning_novograd.optim.novograd.cpu import _fused_cpu_novograd

        return _fused_cpu_novograd
    if device == "cuda" and has_triton():
        from lightning_novograd.optim.novograd.cuda import _fused_cuda_novograd

        return _fused_cuda_novograd
    raise RuntimeError(f"`fused=True` needs parameters on CPU, or on CUDA with Triton; found {device}: leave it unset")


def _default_worker(params: list[Tensor], differentiable: bool) -> tuple[bool, bool]:
    """(fused, foreach) for the fastest worker that is correct for these parameters."""
    if differentiable or not set(map(type, params)) <= {Tensor, torch.nn.Parameter}:
        return False, False
    if torch.compiler.is_compiling():
        return False, True
    devices = {param.device.type for param in params}
    fused = devices <= {"cpu", "cuda"} and ("cuda" not in devices or has_triton())
    return fused, not fused and _default_to_fused_or_foreach(params, differentiable)[1]


def _clipped_step_sizes(
    weights: list[Tensor],
    moments: list[Tensor],
    layers: list[Tensor] | None,
    lr: float | Tensor,
    luc_trust: float,
    luc_eps: float,
) -> list[Tensor]:
    sq_norms = squared_norms([*weights, *moments], None if layers is None else [*layers, *layers])
    step_sizes = []
    for weight_sq_norm, moment_sq_norm in zip(sq_norms[: len(weights)], sq_norms[len(weights) :], strict=True):
        denom = moment_sq_norm.sqrt() + luc_eps
        # With luc_eps = 0, a layer of zeros without momentum has 0 / 0; it shall not move.
        ratio = luc_trust * weight_sq_norm.sqrt() / denom.masked_fill(denom == 0, torch.inf)
        step_sizes.append(torch.minimum(ratio, lr.to(ratio)) if isinstance(lr, Tensor) else ratio.clamp(max=lr))
    return step_sizes


def _same_device_and_dtype(params: Iterable[Tensor]) -> list[list[int]]:
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, param in enumerate(params):
        groups.setdefault((param.device, param.dtype), []).append(index)
    return list(groups.values())


def _squared_norms_if_sharded(groups: list[tuple[list[Tensor], list[Tensor]]]) -> list[list[Tensor] | None]:
    """Per group of (params, grads), the gradients' squared norms if any parameter is a DTensor, else None.

    Gradients that are not laid out as their parameters are replaced in the lists.
    """
    if not any(is_sharded(param) for params, _ in groups for param in params):
        return [None] * len(groups)
    for params, grads in groups:
        grads[:] = [placed_like(grad, param) for grad, param in zip(grads, params, strict=True)]
    sq_norms = iter(squared_norms([grad for _, grads in groups for grad in grads]))
    return [[next(sq_norms) for _ in grads] for _, grads in groups]
