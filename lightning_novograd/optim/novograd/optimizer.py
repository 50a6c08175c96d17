"""NovoGrad: stochastic gradient descent with layer-wise normalized gradients.

The class validates, keeps the state and gathers layers; `functional` chooses a worker; the workers do the arithmetic.
"""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT, _device_dtype_check_for_fused, _use_grad_for_differentiable

from lightning_novograd.optim.checkpoint.convert import in_our_format
from lightning_novograd.optim.kernels.tracing import is_transformed
from lightning_novograd.optim.norms import accumulation_dtype
from lightning_novograd.optim.novograd.functional import chosen_worker
from lightning_novograd.optim.novograd.layers import Layers, with_sharded_norms
from lightning_novograd.optim.novograd.options import Options
from lightning_novograd.optim.novograd.validation import (
    SCALARS,
    check_options,
    check_same_parameters,
    refuse_conjugated,
    refuse_flattened,
)
from lightning_novograd.optim.parameters import known_shape, listed_params
from lightning_novograd.registry import register_optimizer

_DTYPE = attrgetter("dtype")


@register_optimizer("NovoGrad", needs={"luc_trust": "luc", "luc_eps": "luc"})
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
    0-dim, float32, or float64 for a float64 parameter) and, with `amsgrad`, `max_exp_avg_sq` (as `exp_avg_sq`). Where
    the parameter is widened or narrowed in mid-training, `exp_avg` keeps its dtype, as SGD's momentum does.

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
        self._layers: dict[int, torch.Size | None] = {}  # what `refuse_flattened` needs
        super().__init__(params, defaults)

    def _check_graph_capture(self) -> None:
        if hasattr(self, "_accelerator_graph_capture_health_check"):
            self._accelerator_graph_capture_health_check()
        else:  # its name before torch 2.12
            self._cuda_graph_capture_health_check()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a GradScaler leaves unscaling and skipping to `step`, as it does for torch's fused optimizers."""
        return self._unscales and all(group["fused"] for group in self.param_groups)

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, supports: bool) -> None:
        self._unscales = supports

    _unscales = True  # torch's optimizers keep this in an attribute, which can be set to leave it to the GradScaler

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group; options that it leaves out take the optimizer's defaults.

        Args:
            param_group: `params` and options.

        Raises:
            ValueError: an option out of range, or parameters that are flattened shards.

        """
        layers: dict[int, torch.Size | None] = {}
        if isinstance(param_group, dict):  # all checks come first: what is refused leaves no trace
            check_options({**self.defaults, **param_group})
            params = [param for param in listed_params(param_group) if isinstance(param, Tensor)]
            layers = {id(param): known_shape(param) for param in params}
            for param in params:
                refuse_flattened(param, layers)
        super().add_param_group(param_group)
        self._layers |= layers

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_unscales": self._unscales}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for option, default in self.defaults.items():
                group.setdefault(option, default)
        if "_layers" not in self.__dict__:  # a copy
            self._layers = {id(param): known_shape(param) for group in self.param_groups for param in group["params"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; the second moments keep their float32 or float64 also for bf16 parameters.

        Options that the saved groups lack keep the values of this optimizer's defaults.

        Args:
            state_dict: of this optimizer or of NeMo's, timm's or pytorch_optimizer's NovoGrad.

        Raises:
            ValueError: the saved groups or states belong to other parameters, to parameters in another order, or to an
                optimizer that goes on by another formula; a saved option is out of range. Then nothing has changed.

        """
        state_dict = in_our_format(state_dict)
        saved_state: dict[int, dict[str, Any]] = {}
        saved_ids: list[int] = []

        # The base class casts every state to its parameter's dtype; put the second moments back as they were saved.
        def check(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
            check_same_parameters(optimizer, state_dict)
            for group in state_dict["param_groups"]:
                check_options({**optimizer.defaults, **group})
            saved_state.update(state_dict["state"])
            saved_ids.extend(i for group in state_dict["param_groups"] for i in group["params"])

        def restore(optimizer: Optimizer) -> None:
            params = [param for group in optimizer.param_groups for param in group["params"]]
            for param, saved_id in zip(params, saved_ids, strict=True):
                for key in SCALARS:
                    if key in saved_state.get(saved_id, ()):
                        optimizer.state[param][key] = (
                            torch.as_tensor(saved_state[saved_id][key], device=param.device)
                            .to(accumulation_dtype(param.dtype), copy=True)
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
        """Fill the lists for `layers_of`; torch.compile knows this method of optimizers by its name and its lists."""
        amsgrad = group["amsgrad"]
        for p in group["params"]:
            grad = p.grad
            if grad is None:
                continue
            if grad.is_sparse:
                raise RuntimeError("NovoGrad does not support sparse gradients; use a dense embedding (sparse=False)")
            state = self.state[p]
            if not state:
                refuse_flattened(p, self._layers)
                if group["fused"]:
                    _device_dtype_check_for_fused(p)
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                dtype = accumulation_dtype(p.dtype)
                # vmap has one for each of its layers
                state["exp_avg_sq"] = (
                    p.new_zeros((), dtype=dtype) if is_transformed() else torch.zeros((), dtype=dtype, device=p.device)
                )
            if amsgrad and "max_exp_avg_sq" not in state:
                state["max_exp_avg_sq"] = state["exp_avg_sq"].clone()
            params.append(p)
            grads.append(grad)
            exp_avgs.append(state["exp_avg"])
            exp_avg_sqs.append(state["exp_avg_sq"])
            if amsgrad:
                max_exp_avg_sqs.append(state["max_exp_avg_sq"])
        dtypes = set(map(_DTYPE, params))
        if dtypes != {torch.float32} or set(map(_DTYPE, exp_avg_sqs)) != dtypes:  # apart, since it is rarely so
            self._convert_scalars(params, exp_avg_sqs, max_exp_avg_sqs)
        has_complex = any(dtype.is_complex for dtype in dtypes)
        if has_complex:
            refuse_conjugated([*params, *exp_avgs])
        return has_complex

    def _convert_scalars(self, params: list[Tensor], exp_avg_sqs: list[Tensor], max_exp_avg_sqs: list[Tensor]) -> None:
        """Convert second moments where the model has been widened or narrowed, in the state and in the lists."""
        for i, p in enumerate(params):
            dtype = accumulation_dtype(p.dtype)
            if exp_avg_sqs[i].dtype is dtype:
                continue
            state = self.state[p]
            state.update({key: state[key].to(dtype) for key in SCALARS if key in state})
            exp_avg_sqs[i] = state["exp_avg_sq"]
            if max_exp_avg_sqs:
                max_exp_avg_sqs[i] = state["max_exp_avg_sq"]

    def layers_of(self, group: dict[str, Any]) -> Layers:
        """The layers of a param group that have gradients, with their state, which is set up in their first step."""
        params: list[Tensor] = []
        grads: list[Tensor] = []
        exp_avgs: list[Tensor] = []
        exp_avg_sqs: list[Tensor] = []
        max_exp_avg_sqs: list[Tensor] = []
        has_complex = self._init_group(group, params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs)
        return Layers(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, has_complex=has_complex)

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

        # All groups are gathered and find their workers before any is updated: errors change nothing, and the norms of
        # layers that are spread over processes are summed in one all-reduce for the whole optimizer.
        gathered = with_sharded_norms([self.layers_of(group) for group in self.param_groups])
        chosen = [
            chosen_worker(layers, Options.of(group), foreach=group["foreach"], fused=group["fused"])
            for group, layers in zip(self.param_groups, gathered, strict=True)
            if layers.params
        ]
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        for worker, layers, options in chosen:
            worker(layers, options, grad_scale, found_inf)
        return loss
