"""The arithmetic of LARC: factors from norms, gradients and weights scaled by factors, and the memory for it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_novograd.optim.norms import accumulation_dtype, cpu_squared_norm, is_sharded, squared_norms

# Elements of the layers that are worked on together on a CPU: with gradients, moments and copies, a few MB.
_CACHEFUL = 1 << 19
_ALIGNMENT = 16  # elements


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
    factors = trust_coefficient * weight_norms / (lr * lengths if clip else lengths)
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
    return _limited(bounds / (step_norms + lr * eps), weight_norms, step_norms, clip, min_update)


def larc_options(group: Mapping[str, Any], like: Tensor) -> dict[str, Any]:
    """What the two functions above need from a param group; a tensor lr like the norms."""
    lr = group["lr"]
    return {
        "lr": lr.reshape(()).to(like) if isinstance(lr, Tensor) else lr,
        "trust_coefficient": group["larc_trust_coefficient"],
        "clip": group["larc_clip"],
        "eps": group["larc_eps"],
        "min_update": group["larc_min_update"],
    }


def _limited(factors: Tensor, weight_norms: Tensor, norms: Tensor, clip: bool, min_update: float) -> Tensor:
    factors = factors.clamp(min=min_update)
    factors = factors.masked_fill(weight_norms == 0, min_update if min_update > 0 else 1.0)
    factors = factors.masked_fill(norms == 0, 1.0)
    return factors.clamp(max=1.0) if clip else factors


def numbers(factors: Tensor) -> Sequence[float | Tensor]:
    """The factors as numbers on the CPU, where looking at them costs nothing; elsewhere as 0-dim tensors."""
    return factors.tolist() if factors.device.type == "cpu" else factors.unbind()


def decay_and_scale(out: Tensor, grad: Tensor, weight: Tensor, weight_decay: float, factor: float | Tensor) -> None:
    """`out = factor * (grad + weight_decay * weight)`."""
    if weight_decay == 0:
        torch.mul(grad, factor, out=out)
    else:
        torch.add(grad, weight, alpha=weight_decay, out=out).mul_(factor)


def shorten_step(before: Tensor, after: Tensor, factor: float | Tensor) -> None:
    """`after = before + factor * (after - before)`, exactly `after` for a factor of 1 and `before` for 0."""
    if isinstance(factor, float) or after.dtype == factor.dtype:
        torch.lerp(before, after, factor, out=after)
    else:
        after.copy_(torch.lerp(before.to(factor.dtype), after.to(factor.dtype), factor))


def squared_norms_and_distances(
    before: list[Tensor], after: list[Tensor], layers: list[Tensor], scratch: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """The squared norms of `before` and of `after - before`: of whole layers, where these are local shards.

    Args:
        before: real tensors.
        after: as `before`.
        layers: what `before` and `after` are the local shards of.
        scratch: memory for one difference, as large as the largest; overwritten.

    """
    if not all(b.device.type == "cpu" and b.dtype == scratch.dtype for b in before) or any(map(is_sharded, layers)):
        sq_norms = squared_norms([*before, *torch._foreach_sub(after, before)], [*layers, *layers])
        return sq_norms[: len(before)], sq_norms[len(before) :]
    distances, scratch = [], scratch.as_strided((scratch.numel(),), (1,))
    for a, b in zip(after, before, strict=True):
        # one at a time: it is still in the cache when its norm is taken
        difference = scratch[: b.numel()].view(b.shape)
        distances.append(cpu_squared_norm(torch.sub(a, b, out=difference)))
    return [cpu_squared_norm(b) for b in before], distances


def same_device_and_dtype(layers: Sequence[Tensor]) -> list[list[int]]:
    """Indices of layers whose norms can be stacked."""
    indices: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, layer in enumerate(layers):
        indices.setdefault((layer.device, accumulation_dtype(layer.dtype)), []).append(index)
    return list(indices.values())


def cachefuls(layers: Sequence[Tensor], times: int = 1) -> Iterator[list[Tensor]]:
    """Runs of layers that fit in `times` caches, or one layer that does not."""
    run: list[Tensor] = []
    elements = 0
    for layer in layers:
        if run and elements + layer.numel() > times * _CACHEFUL:
            yield run
            run, elements = [], 0
        run.append(layer)
        elements += layer.numel()
    if run:
        yield run


class Scratch:
    """Memory for temporaries; on a CPU the same at every step, because fresh memory costs more than the arithmetic."""

    def __init__(self) -> None:
        self._flat: dict[torch.dtype, Tensor] = {}

    def like(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Uninitialized tensors like `tensors`, valid until the next call."""
        ends: dict[torch.dtype, int] = {}
        for t in tensors:
            ends[t.dtype] = ends.get(t.dtype, 0) + _aligned(t.numel())
        used = dict.fromkeys(ends, 0)
        out = []
        for t in tensors:
            if t.device.type != "cpu" or is_sharded(t) or not t.is_contiguous():
                out.append(torch.empty_like(t))
                continue
            if t.dtype not in self._flat or self._flat[t.dtype].numel() < ends[t.dtype]:
                self._flat[t.dtype] = torch.empty(ends[t.dtype], dtype=t.dtype)
            start = used[t.dtype]
            out.append(self._flat[t.dtype][start : start + t.numel()].view(t.shape))
            used[t.dtype] = start + _aligned(t.numel())
        return out


def _aligned(elements: int) -> int:
    return -(-elements // _ALIGNMENT) * _ALIGNMENT
