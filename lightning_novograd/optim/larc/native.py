"""LARC's way into the C++ kernels, where there are any: all layers of a param group in one call.

They take float32 layers whose tensors are contiguous and lie on the CPU.

- `native_sgd_step` (target gradient), `native_novograd_step` and `native_adam_step` (target update) take norms, factor
  and step batch by batch of layers, while these are in the cache; no layer is copied. They return the factors of the
  layers that they have stepped, and the layers that are left to others.
- `save` serves target update around any other optimizer, whose step comes between it and `shorten_steps`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import SGD, Adam, AdamW

from lightning_novograd.optim.kernels.cpu import library
from lightning_novograd.optim.kernels.cpu.plain import unsuited
from lightning_novograd.optim.kernels.tracing import is_traced
from lightning_novograd.optim.larc.factors import Factors
from lightning_novograd.optim.larc.pieces import ParamGroup, with_gradient
from lightning_novograd.optim.novograd.cpu import kernel_step
from lightning_novograd.optim.novograd.layers import Layers
from lightning_novograd.optim.novograd.options import Options


def are_built_for(layers: list[Tensor]) -> bool:
    """Whether there are kernels, and no layer is of a subclass of Tensor.

    A subclass may have its memory elsewhere, as DTensors have.
    """
    return library.load() is not None and _are_plain(layers)


def native_sgd_step(optimizer: SGD, group: ParamGroup) -> tuple[Factors, list[Tensor]]:
    """One step of SGD under target gradient."""
    layers, others = _suited(optimizer, with_gradient(group), has_moments=group["momentum"] != 0)
    moments: list[Tensor] = []
    shares: list[float] = []
    if group["momentum"] != 0:
        for param in layers:
            state = optimizer.state[param]
            moment, share = state.get("momentum_buffer"), 1.0 - group["dampening"]
            if moment is None:
                moment = state["momentum_buffer"] = torch.zeros_like(param)
                share = 1.0  # torch does not dampen the first gradient
            moments.append(moment)
            shares.append(share)
    factors, left = _kernels().larc_sgd_step_.default(
        layers,
        _grads(layers),
        moments,
        shares,
        float(group["lr"]),
        group["weight_decay"],
        group["momentum"],
        group["nesterov"],
        group["maximize"],
        _larc(group),
    )
    stepped, left_layers = _result([layers, moments] if moments else [layers], factors, left)
    return stepped, [*others, *left_layers]


def native_adam_step(optimizer: Adam, group: ParamGroup, vector: Tensor) -> tuple[Factors, list[Tensor]]:
    """One step of Adam or AdamW under target update; `vector` is memory that the caller keeps between steps."""
    params: list[Tensor] = []
    grads: list[Tensor] = []
    exp_avgs: list[Tensor] = []
    exp_avg_sqs: list[Tensor] = []
    steps: list[Tensor] = []
    optimizer._init_group(group, params, grads, exp_avgs, exp_avg_sqs, [], steps)
    lists = [params, grads, exp_avgs, exp_avg_sqs, steps]
    others: list[Tensor] = []
    misfits = unsuited(*lists)
    if misfits:
        others = [params[i] for i in misfits]
        lists = [_split(tensors, misfits)[0] for tensors in lists]
    beta1, beta2 = group["betas"]
    factors, left = _kernels().larc_adam_step_.default(
        *lists,
        float(beta1),
        float(beta2),
        group["eps"],
        float(group["lr"]),
        group["weight_decay"],
        isinstance(optimizer, AdamW) or group.get("decoupled_weight_decay", False),
        group["maximize"],
        _larc(group),
        vector,
    )
    params, _, *state = lists
    stepped, left_layers = _result([params, *state], factors, left)
    return stepped, [*others, *left_layers]


def native_novograd_step(layers: Layers, options: Options, group: ParamGroup) -> tuple[Factors, list[Tensor]]:
    """One step of NovoGrad under target update; `layers` and `options` are those of the param group."""
    left, factors = kernel_step(_kernels(), layers, options, larc=_larc(group))
    params, left_layers = _split(layers.params, left)
    return _pairs(params, factors, left), left_layers


def save(groups: list[ParamGroup], vector: Tensor) -> "SavedWeights | None":
    """Copy the groups' weights into `vector`, which grows as needed and which the caller keeps between steps.

    Nothing is copied, and None returned, where there are no kernels or they cannot take a layer.
    """
    layers = [with_gradient(group) for group in groups]
    flat = [p for group_layers in layers for p in group_layers]
    if is_traced() or not are_built_for(flat) or unsuited(flat):
        return None
    starts = _kernels().larc_save_.default(vector, flat)
    return SavedWeights(groups, layers, vector, starts) if starts else None


class SavedWeights:
    """Where the layers of `groups` were before a step: copies of the weights."""

    def __init__(self, groups: list[ParamGroup], layers: list[list[Tensor]], vector: Tensor, starts: list[int]) -> None:
        self._groups, self._layers = groups, layers
        self._vector, self._starts = vector, starts  # each layer's first element in the vector

    def shorten_steps(self) -> Factors:
        """Scale the way from there to where the layers are now; returns the factors."""
        result: Factors = []
        starts = self._starts
        for group, layers in zip(self._groups, self._layers, strict=True):
            group_starts, starts = starts[: len(layers)], starts[len(layers) :]
            factors = []
            if not unsuited(layers):
                factors = _kernels().larc_limit_.default(
                    self._vector, group_starts, layers, float(group["lr"]), _larc(group)
                )
            if len(factors) != len(layers):
                raise RuntimeError(
                    "LARC: the wrapped optimizer has replaced a layer by a tensor of another size, layout or dtype"
                )
            increment_version(layers)
            result.append((layers, torch.tensor(factors, dtype=torch.float32, device="cpu")))
        return result


def _kernels() -> Any:
    kernels = library.load()
    assert kernels is not None
    return kernels


def _are_plain(layers: list[Tensor]) -> bool:
    return set(map(type, layers)) <= {Tensor, torch.nn.Parameter}


def _larc(group: ParamGroup) -> list[float]:
    """LARC's options as the kernels take them."""
    names = ("larc_trust_coefficient", "larc_clip", "larc_eps", "larc_min_update")
    return [float(group[name]) for name in names]


def _suited(optimizer: SGD, layers: list[Tensor], *, has_moments: bool) -> tuple[list[Tensor], list[Tensor]]:
    """The layers that the kernels may be given, and the others; all that then get a first moment here fit."""
    moments = [optimizer.state[p].get("momentum_buffer") for p in layers] if has_moments else []
    known = [
        p if moment is None else moment for p, moment in zip(layers, moments, strict=False)
    ]  # empty without moments
    layers, others = _split(layers, unsuited(layers, _grads(layers), known))
    if any(moment is None for moment in moments):
        layers, misfits = _split(layers, _kernels().misfits.default(layers, _grads(layers)))
        others += misfits
    return layers, others


def _grads(layers: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in layers if p.grad is not None]


def _result(written: list[list[Tensor]], factors: list[float], left: list[int]) -> tuple[Factors, list[Tensor]]:
    """The factors of layers that were stepped, and the layers at the indices `left`.

    Version counters advance for what was written: lists of the layers and of their state.
    """
    stepped = [_split(tensors, left)[0] for tensors in written]
    increment_version([t for tensors in stepped for t in tensors])
    return _pairs(stepped[0], factors, left), [written[0][i] for i in left]


def _pairs(stepped: list[Tensor], factors: list[float], left: list[int]) -> Factors:
    if not stepped:
        return []
    return [(stepped, torch.tensor(_split(factors, left)[0], dtype=torch.float32, device="cpu"))]


def _split(values: list[Any], indices: list[int]) -> tuple[list[Any], list[Any]]:
    """The values at other indices, and those at `indices`."""
    if not indices:
        return values, []
    chosen = set(indices)
    return [v for i, v in enumerate(values) if i not in chosen], [values[i] for i in indices]
