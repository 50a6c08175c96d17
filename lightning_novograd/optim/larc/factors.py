"""LARC's formulas: a layer's factor from its norms."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_novograd.optim.kernels.tracing import is_traced

# Layers, and the vector of their factors
Factors = list[tuple[list[Tensor], Tensor]]


def gradient_factors(
    weight_norms: Tensor,
    grad_norms: Tensor,
    *,
    lr: float | Tensor,
    weight_decay: float,
    trust_coefficient: float,
    clip: bool,
    eps: float,
    min_update: float,
) -> Tensor:
    """One factor per layer, for its gradient with decay: what :class:`LARC` calls f for `target="gradient"`."""
    lengths = grad_norms + weight_decay * weight_norms + eps
    factors = _ratios(trust_coefficient * weight_norms, lr * lengths if clip else lengths)
    return _limited(factors, weight_norms, grad_norms, clip, min_update)


def update_factors(
    weight_norms: Tensor,
    step_norms: Tensor,
    *,
    lr: float | Tensor,
    trust_coefficient: float,
    clip: bool,
    eps: float,
    min_update: float,
) -> Tensor:
    """One factor per layer, for the step that it made: what :class:`LARC` calls f for `target="update"`."""
    bounds = trust_coefficient * (weight_norms if clip else lr * weight_norms)
    return _limited(_ratios(bounds, step_norms + lr * eps), weight_norms, step_norms, clip, min_update)


def larc_options(group: Mapping[str, Any], like: Tensor) -> dict[str, Any]:
    """What the two functions above need from a param group; a tensor lr like the norms."""
    lr = group["lr"]
    if isinstance(lr, Tensor):
        # A CPU's lr goes to a GPU as a number, for which nothing waits; where it is traced it may not be looked at.
        as_number = lr.is_cpu and not like.is_cpu and not is_traced()
        lr = float(lr) if as_number else lr.reshape(()).to(like)
    return {
        "lr": lr,
        "trust_coefficient": group["larc_trust_coefficient"],
        "clip": group["larc_clip"],
        "eps": group["larc_eps"],
        "min_update": group["larc_min_update"],
    }


def _ratios(bounds: Tensor, lengths: Tensor) -> Tensor:
    """`bounds / lengths`; a bound of 0 allows no step, also where there is no length (a learning rate of 0)."""
    return bounds / lengths.masked_fill((bounds == 0) & (lengths == 0), 1.0)


def _limited(factors: Tensor, weight_norms: Tensor, norms: Tensor, clip: bool, min_update: float) -> Tensor:
    factors = factors.clamp(min=min_update)
    factors = factors.masked_fill(weight_norms == 0, min_update if min_update > 0 else 1.0)
    # Weights of infinite norm bound no step, and what the formulas give for them may be NaN.
    factors = factors.masked_fill((norms == 0) | weight_norms.isinf(), 1.0)
    return factors.clamp(max=1.0) if clip else factors


def numbers(factors: Tensor) -> Sequence[float | Tensor]:
    """The factors as numbers on the CPU, where looking at them costs nothing; elsewhere as 0-dim tensors.

    Tensors they are also where the step is traced: `tolist` shows itself to no dispatcher, so that numbers would be
    baked into a graph.
    """
    return factors.tolist() if factors.device.type == "cpu" and not is_traced() else factors.unbind()
