"""LARC: layer-wise adaptive rate control around any optimizer that needs one gradient per step."""

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from lightning_novograd.errors import choices
from lightning_novograd.optim.layer_norms import (
    accumulation_dtype,
    cpu_squared_norm,
    is_sharded,
    local_shard,
    placed_like,
    real_view,
    squared_norms,
)
from lightning_novograd.optim.novograd import NovoGrad

__all__ = ["LARC", "larc_arguments_from_openseq2seq"]

TARGETS = ("auto", "gradient", "update")
OPTIONS = ("larc", "larc_trust_coefficient", "larc_clip", "larc_eps", "larc_min_update")

# A gradient scaled by c scales the steps of these by c: scaling the gradient controls the step.
_FOLLOW_GRADIENT_SCALE = (torch.optim.SGD, torch.optim.ASGD)
# These divide by the size of their own gradients or take its sign only: scaling the gradient controls nothing.
_UNDO_GRADIENT_SCALE = (
    NovoGrad,
    torch.optim.Adadelta,
    torch.optim.Adafactor,
    torch.optim.Adagrad,
    torch.optim.Adam,
    torch.optim.Adamax,
    torch.optim.AdamW,
    torch.optim.Muon,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Rprop,
)

ParamGroup = dict[str, Any]


class LARC(Optimizer):
    r"""Layer-wise adaptive rate control: keeps every layer's step small against the layer's weights.

    A layer is one parameter tensor :math:`w` with gradient :math:`g`; :math:`\gamma` and :math:`\lambda` are its
    group's `lr` and `weight_decay`, :math:`\tau` is `trust_coefficient` and :math:`\mu` is `min_update`. A layer's factor is

    .. math::
        r &= \tau \|w\| / (s + \epsilon) \\
        f &= \min(\max(r / \gamma, \mu), 1) \text{ with clip, else } \max(r, \mu)

    - `target="gradient"`: :math:`s = \|g\| + \lambda \|w\|`. The wrapped optimizer gets the gradient
      :math:`f (g + \lambda w)` and no weight decay.
    - `target="update"`: the wrapped optimizer makes its step :math:`\Delta w`, with decay, momentum and all;
      :math:`s = \|\Delta w\| / \gamma`, and the step becomes :math:`f \Delta w`. Whatever the optimizer, its length is
      then at most :math:`\tau \|w\|` with `clip`, and :math:`\gamma \tau \|w\|` without, up to :math:`\epsilon` and the
      rounding of :math:`w`. With `clip`, a step within the bound is left exactly as it is.
    - `target="auto"`: gradient around SGD and ASGD, update around all others. An optimizer that divides by the
      size of its own gradients (NovoGrad, Adam and kin) undoes a scaling of them.

    Where the weights, the gradient or (target update) the step of a layer are all zero, :math:`f = 1`: weights can
    leave zero. With `min_update > 0`, zero weights have :math:`f = \mu`. A zero gradient is not decayed with target gradient.

    Args:
        optimizer: the optimizer to wrap, which keeps `param_groups`, `state` and `defaults` for both.
        trust_coefficient: :math:`\tau \ge 0`, the length of a step relative to the weights.
        clip: only ever shorten steps; otherwise set their length.
        eps: :math:`\epsilon \ge 0`, in units of the gradient norm.
        min_update: :math:`\mu \ge 0`, the smallest factor. It goes before the bound.
        target: "gradient", "update" or "auto"; the attribute `target` is the resolved choice.

    The options live in the param groups as `larc_trust_coefficient`, `larc_clip`, `larc_eps` and `larc_min_update`:
    they are saved in the state_dict and may differ between groups. A group with `larc=False` is left to the wrapped
    optimizer; do so for biases and normalization layers.

    State: that of the wrapped optimizer. The attribute `factors` holds the last step's factors, as pairs of layers and
    a vector. During a step there is one more copy of the gradients (target gradient) or of the weights (target update);
    on the CPU it is kept between steps, because fresh memory costs more than the arithmetic.

    `p.grad` and `weight_decay` are what they were when `step` returns or raises.

    Raises:
        TypeError: `optimizer` is no torch Optimizer or evaluates its closure several times (LBFGS).
        ValueError: an option out of range, an unknown target, or an optimizer that is under LARC already, has
            `differentiable=True`, has no `lr`, or has parameters flattened by FSDP1 or DeepSpeed.
        RuntimeError: sparse gradients.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = LARC(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), trust_coefficient=0.001)
        >>> model(torch.ones(3, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> optimizer.target
        'gradient'

    You, Gitman and Ginsburg, *Large Batch Training of Convolutional Networks*, https://arxiv.org/abs/1708.03888. Target
    gradient gives the values of apex's LARC and, without weight decay, of OpenSeq2Seq's. Target update is ours; around
    NovoGrad it is the optimizer's own `luc`, except that zero weights can move. More in `docs/larc.md`.

    """

    def __init__(
        self,
        optimizer: Optimizer,
        trust_coefficient: float = 0.02,
        clip: bool = True,
        eps: float = 1e-8,
        min_update: float = 0.0,
        target: str = "auto",
    ) -> None:
        _check_optimizer(optimizer)
        if target not in TARGETS:
            raise ValueError(f"Invalid target: {target!r}{choices(target, TARGETS)}")
        if target == "gradient" and isinstance(optimizer, _UNDO_GRADIENT_SCALE):
            warnings.warn(
                f"LARC(target='gradient') does not bound the steps of {type(optimizer).__name__}, which divides by the "
                "size of its own gradients; use target='update' or 'auto'",
                stacklevel=2,
            )
        if target == "auto":
            target = "gradient" if isinstance(optimizer, _FOLLOW_GRADIENT_SCALE) else "update"
        options = {
            "larc": True,
            "larc_trust_coefficient": trust_coefficient,
            "larc_clip": clip,
            "larc_eps": eps,
            "larc_min_update": min_update,
        }
        for group in optimizer.param_groups:
            _check_options({**options, **group})
        # As copies and unpickled ones begin; the base's __init__ would put new param_groups and state into both.
        self.__setstate__({"optimizer": optimizer, "target": target})
        self.defaults.update(options)
        self._complete_groups()

    # The optimizer that is wrapped, and which of TARGETS is meant.
    optimizer: Optimizer
    target: str

    @property
    def param_groups(self) -> list[ParamGroup]:
        """The wrapped optimizer's."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, param_groups: list[ParamGroup]) -> None:
        self.optimizer.param_groups = param_groups

    @property
    def state(self) -> Any:
        """The wrapped optimizer's."""
        return self.optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.optimizer.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The wrapped optimizer's, with LARC's options."""
        return self.optimizer.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.optimizer.defaults = defaults

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer, "target": self.target}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.factors: list[tuple[list[Tensor], Tensor]] = []
        self._buffers: dict[Tensor, Tensor] = {}
        super().__setstate__(state)

    def __repr__(self) -> str:
        return f"LARC(target={self.target!r}, optimizer={self.optimizer!r})"

    def add_param_group(self, param_group: ParamGroup) -> None:
        """Add a param group to the wrapped optimizer.

        Args:
            param_group: `params` and options, LARC's among them; those left out take the defaults.

        Raises:
            ValueError: an option of LARC is unknown or out of range.

        """
        if isinstance(param_group, dict):
            _check_options({**self.defaults, **param_group})
        self.optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state_dict; LARC's options are in its param groups."""
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        state_dict = self.optimizer.state_dict()
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            result = post_hook(self, state_dict)
            state_dict = state_dict if result is None else result
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load into the wrapped optimizer.

        Args:
            state_dict: of a LARC, or of a bare optimizer like the wrapped one: then LARC's options stay as they are.

        """
        state_dict = state_dict.copy()
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            result = pre_hook(self, state_dict)
            state_dict = state_dict if result is None else result
        options = [{option: group[option] for option in OPTIONS} for group in self.param_groups]
        self.optimizer.load_state_dict(state_dict)
        self._complete_groups(options)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform one controlled step of the wrapped optimizer.

        Args:
            closure: reevaluates the model and returns the loss; called once, with gradients enabled, before any norm is
                taken.

        Returns:
            What the closure returned, else None.

        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.factors = []
        groups = self._controlled_groups()
        with self._scaled_gradients(groups) if self.target == "gradient" else self._scaled_updates(groups):
            self.optimizer.step()
        return loss

    def _complete_groups(self, options: list[ParamGroup] | None = None) -> None:
        for index, group in enumerate(self.param_groups):
            for option in OPTIONS:
                group.setdefault(option, self.defaults[option] if options is None else options[index][option])

    def _controlled_groups(self) -> list[tuple[ParamGroup, list[Tensor]]]:
        """The groups under control, each with those of its layers that have a gradient."""
        groups = []
        for group in self.param_groups:
            layers = [p for p in group["params"] if p.grad is not None] if group["larc"] else []
            if any(p.grad.layout != torch.strided for p in layers):
                raise RuntimeError("LARC does not support sparse gradients; use a dense embedding (sparse=False)")
            if layers:
                groups.append((group, layers))
        return groups

    @contextmanager
    def _scaled_gradients(self, groups: list[tuple[ParamGroup, list[Tensor]]]) -> Iterator[None]:
        """Inside, the layers have scaled and decayed copies of their gradients, and `weight_decay` is 0."""
        layers = [p for _, params in groups for p in params]
        originals = [p.grad for p in layers]
        grads = [placed_like(grad, p) for grad, p in zip(originals, layers, strict=True) if grad is not None]
        sq_norms = squared_norms([*layers, *grads])
        scaled = list(grads)
        for group, indices in _same_device_and_dtype(groups):
            weight_norms = torch.stack([sq_norms[i] for i in indices]).sqrt()
            grad_norms = torch.stack([sq_norms[len(layers) + i] for i in indices]).sqrt()
            weight_decay = group.get("weight_decay", 0.0)
            lengths = grad_norms + weight_decay * weight_norms + group["larc_eps"]
            if group["larc_clip"]:
                lengths = _lr(group, lengths) * lengths
            factors = _factors(group, weight_norms, lengths, (weight_norms, grad_norms))
            self.factors.append(([layers[i] for i in indices], factors))
            # A factor of 0 keeps a zero gradient free of decay, as in apex.
            for i, factor in zip(indices, _unbind(factors.masked_fill(grad_norms == 0, 0.0)), strict=True):
                if weight_decay == 0 and isinstance(factor, float) and factor == 1:
                    continue
                scaled[i] = self._buffer(layers[i], grads[i])
                out, grad, weight = local_shard(scaled[i]), local_shard(grads[i]), local_shard(layers[i])
                if weight_decay == 0:
                    torch.mul(grad, factor, out=out)
                else:
                    torch.add(grad, weight, alpha=weight_decay, out=out).mul_(factor)

        decays = [(group, group["weight_decay"]) for group, _ in groups if "weight_decay" in group]
        try:
            for group, _ in decays:
                group["weight_decay"] = 0.0
            for p, grad in zip(layers, scaled, strict=True):
                p.grad = grad
            yield
        finally:
            for p, original in zip(layers, originals, strict=True):
                p.grad = original
            for group, weight_decay in decays:
                group["weight_decay"] = weight_decay

    @contextmanager
    def _scaled_updates(self, groups: list[tuple[ParamGroup, list[Tensor]]]) -> Iterator[None]:
        """What the layers' weights change by inside is scaled afterwards."""
        layers = [p for _, params in groups for p in params]
        weights = [real_view(local_shard(p)) for p in layers]
        before = [real_view(local_shard(self._buffer(p, p))) for p in layers]
        torch._foreach_copy_(before, weights)
        yield
        sq_norms = _squared_norms_and_distances(before, weights, layers)
        for group, indices in _same_device_and_dtype(groups):
            weight_norms = torch.stack([sq_norms[i] for i in indices]).sqrt()
            step_norms = torch.stack([sq_norms[len(layers) + i] for i in indices]).sqrt()
            lr = _lr(group, step_norms)
            bounds = weight_norms if group["larc_clip"] else lr * weight_norms
            factors = _factors(group, bounds, step_norms + lr * group["larc_eps"], (weight_norms, step_norms))
            self.factors.append(([layers[i] for i in indices], factors))
            for i, factor in zip(indices, _unbind(factors), strict=True):
                if isinstance(factor, float) and factor == 1:
                    continue
                _interpolate(before[i], weights[i], factor)

    def _buffer(self, param: Tensor, like: Tensor) -> Tensor:
        """Memory for a tensor like `like`; the same at every step on the CPU, whose allocator is slow."""
        if like.device.type != "cpu" or is_sharded(like):
            return torch.empty_like(like)
        buffer = self._buffers.get(param)
        if buffer is None or (buffer.dtype, buffer.shape, buffer.stride()) != (like.dtype, like.shape, like.stride()):
            buffer = self._buffers[param] = torch.empty_like(like)
        return buffer


def larc_arguments_from_openseq2seq(params: Mapping[str, Any]) -> dict[str, Any]:
    r"""The arguments of :class:`LARC` for OpenSeq2Seq's `larc_params`.

    Args:
        params: `larc_eta` (required), `larc_mode` ("clip" or "scale"), `min_update`, `epsilon`.

    Returns:
        Keyword arguments of LARC. Keys left out take OpenSeq2Seq's defaults: "clip", 1e-7, 1e-7.

    Raises:
        ValueError: an unknown or missing key, or an unknown mode.

    Example:
        >>> larc_arguments_from_openseq2seq({"larc_eta": 0.001, "larc_mode": "scale"})
        {'trust_coefficient': 0.001, 'clip': False, 'eps': 1e-07, 'min_update': 1e-07, 'target': 'gradient'}

    OpenSeq2Seq's gradients contain the weight decay. With `weight_decay` in the optimizer instead,
    :math:`\|g\| + \lambda \|w\|` bounds the norm of their sum, so the factor is apex's, which is never larger.

    """
    known, modes = ("larc_eta", "larc_mode", "min_update", "epsilon"), ("clip", "scale")
    for key in params:
        if key not in known:
            raise ValueError(f"unknown LARC parameter {key!r}{choices(key, known)}")
    if "larc_eta" not in params:
        raise ValueError(f"larc_eta is missing; given: {', '.join(params) or 'nothing'}")
    mode = params.get("larc_mode", "clip")
    if mode not in modes:
        raise ValueError(f"Invalid larc_mode: {mode!r}{choices(mode, modes)}")
    return {
        "trust_coefficient": params["larc_eta"],
        "clip": mode == "clip",
        "eps": params.get("epsilon", 1e-7),
        "min_update": params.get("min_update", 1e-7),
        "target": "gradient",
    }


def _factors(group: ParamGroup, bounds: Tensor, lengths: Tensor, norms: tuple[Tensor, Tensor]) -> Tensor:
    """One factor per layer, decided on the device: `trust_coefficient * bounds / lengths`, clipped."""
    weight_norms, step_norms = norms
    min_update = group["larc_min_update"]
    factors = (group["larc_trust_coefficient"] * bounds / lengths).clamp(min=min_update)
    factors = factors.masked_fill(weight_norms == 0, min_update if min_update > 0 else 1.0)
    factors = factors.masked_fill(step_norms == 0, 1.0)
    return factors.clamp(max=1.0) if group["larc_clip"] else factors


def _lr(group: ParamGroup, like: Tensor) -> float | Tensor:
    lr = group["lr"]
    return lr.reshape(()).to(like) if isinstance(lr, Tensor) else lr


def _unbind(factors: Tensor) -> Sequence[float | Tensor]:
    """Numbers on the CPU, where looking at them costs nothing; elsewhere 0-dim tensors."""
    return factors.tolist() if factors.device.type == "cpu" else factors.unbind()


def _same_device_and_dtype(groups: list[tuple[ParamGroup, list[Tensor]]]) -> Iterator[tuple[ParamGroup, list[int]]]:
    """Per group, indices of layers (counted through all groups) whose norms can be stacked."""
    start = 0
    for group, params in groups:
        buckets: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for index, p in enumerate(params, start):
            buckets.setdefault((p.device, accumulation_dtype(p.dtype)), []).append(index)
        for indices in buckets.values():
            yield group, indices
        start += len(params)


def _squared_norms_and_distances(before: list[Tensor], after: list[Tensor], layers: list[Tensor]) -> list[Tensor]:
    """The squared norms of `before`, then those of `after - before`; all of whole layers."""
    if any(b.device.type != "cpu" or is_sharded(p) for b, p in zip(before, layers, strict=True)):
        return squared_norms([*before, *torch._foreach_sub(after, before)], [*layers, *layers])
    # One layer at a time: its difference is still in the cache when its norm is taken.
    scratch: dict[torch.dtype, Tensor] = {}
    for b in before:
        if b.dtype not in scratch or scratch[b.dtype].numel() < b.numel():
            scratch[b.dtype] = b.new_empty(b.numel())
    distances = []
    for a, b in zip(after, before, strict=True):
        difference = scratch[b.dtype][: b.numel()].view(b.shape)
        distances.append(cpu_squared_norm(torch.sub(a, b, out=difference)))
    return [*map(cpu_squared_norm, before), *distances]


def _interpolate(start: Tensor, end: Tensor, factor: float | Tensor) -> None:
    """`end = start + factor * (end - start)`, exactly `end` for a factor of 1 and `start` for 0; rounded once."""
    if isinstance(factor, float) or end.dtype == factor.dtype:
        torch.lerp(start, end, factor, out=end)
    else:
        end.copy_(torch.lerp(start.to(factor.dtype), end.to(factor.dtype), factor))


def _check_optimizer(optimizer: Optimizer) -> None:
    kind = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"LARC wraps a torch.optim.Optimizer, not a {kind}")
    if isinstance(optimizer, LARC) or "larc" in optimizer.defaults:
        raise ValueError(f"this {kind} is under LARC already; set larc_* in its groups, or wrap a new optimizer")
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(f"LARC needs one gradient per step, but {kind} evaluates its closure several times")
    for index, group in enumerate(optimizer.param_groups):
        if "lr" not in group:
            raise ValueError(f"LARC needs learning rates, but param group {index} of {kind} has no 'lr'")
        if group.get("differentiable"):
            raise ValueError("LARC does not support differentiable=True")
        if any(getattr(p, "_fsdp_flattened", False) or hasattr(p, "ds_id") for p in group["params"]):
            raise ValueError(
                "LARC needs whole layers, but FSDP1 or DeepSpeed flattened them; use "
                "torch.distributed.fsdp.fully_shard, in Lightning ModelParallelStrategy"
            )


def _check_options(group: Mapping[str, Any]) -> None:
    for option in group:
        if option.startswith("larc") and option not in OPTIONS:
            raise ValueError(f"unknown option {option!r}{choices(option, OPTIONS)}")
    for option in ("larc", "larc_clip"):
        if not isinstance(group[option], bool):
            raise TypeError(f"Invalid {option} value: {group[option]!r}; allowed: True, False")
    for option in ("larc_trust_coefficient", "larc_eps", "larc_min_update"):
        if not 0.0 <= group[option] < math.inf:
            raise ValueError(f"Invalid {option} value: {group[option]}; allowed: a finite number >= 0")
