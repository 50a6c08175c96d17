"""LARC's target update: the wrapped optimizer makes its step, which is then shortened."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_novograd.optim.kernels.tracing import is_traced, is_transformed
from lightning_novograd.optim.larc.factors import Factors, larc_options, numbers, update_factors
from lightning_novograd.optim.larc.memory import Scratch
from lightning_novograd.optim.larc.native import save
from lightning_novograd.optim.larc.pieces import ParamGroup, stackable, with_gradient
from lightning_novograd.optim.norms import cpu_squared_norm, is_sharded, local_shard, real_view, squared_norms


def limited_step(optimizer: Optimizer, groups: list[ParamGroup], scratch: Scratch, vector: Tensor) -> Factors:
    """One step of the wrapped optimizer, of which the layers of `groups` keep a part; returns the layers' factors.

    Args:
        optimizer: the wrapped optimizer.
        groups: those of its param groups that are under control.
        scratch: memory for a copy of the weights, and
        vector: for that of the C++ kernels.

    """
    if not any(with_gradient(group) for group in groups):
        optimizer.step()
        return []
    start = save(groups, vector) or _Start(groups, scratch)
    optimizer.step()
    return start.shorten_steps()


class _Start:
    """Where the layers of `groups` are before a step: copies of the weights."""

    def __init__(self, groups: list[ParamGroup], scratch: Scratch) -> None:
        self._groups = groups
        self._layers = [p for group in groups for p in with_gradient(group)]
        self._after = [real_view(local_shard(p)) for p in self._layers]
        self._difference: Tensor | None = None
        if is_traced():  # memory that is kept would be a constant of the graph, or another mode's
            self._before = [p.clone() for p in self._after]
            return
        *copies, self._difference = scratch.like([*self._layers, max(self._layers, key=Tensor.numel)])
        self._before = [real_view(local_shard(p)) for p in copies]
        torch._foreach_copy_(self._before, self._after)

    def shorten_steps(self) -> Factors:
        """Scale the way from here to where the layers are now; returns the factors."""
        before, after = self._before, self._after
        sq_norms, sq_steps = _squared_norms_and_distances(before, after, self._layers, self._difference)
        result: Factors = []
        for group, indices in stackable(self._groups):
            weight_norms = torch.stack([sq_norms[i] for i in indices]).sqrt()
            step_norms = torch.stack([sq_steps[i] for i in indices]).sqrt()
            factors = update_factors(weight_norms, step_norms, **larc_options(group, step_norms))
            result.append(([self._layers[i] for i in indices], factors))
            for i, factor in zip(indices, numbers(factors), strict=True):
                if not (isinstance(factor, float) and factor == 1):
                    _shorten_step(before[i], after[i], factor)
        return result


def _squared_norms_and_distances(
    before: list[Tensor], after: list[Tensor], layers: list[Tensor], scratch: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """The squared norms of `before` and of `after - before`: of whole layers, where these are local shards.

    Args:
        before: real tensors.
        after: as `before`.
        layers: what `before` and `after` are the local shards of.
        scratch: memory for one difference, as large as the largest; overwritten. None: there is none.

    """
    if (
        scratch is None
        or not all(b.device.type == "cpu" and b.dtype == scratch.dtype for b in before)
        or any(map(is_sharded, layers))
    ):
        steps = torch._foreach_sub(after, before) if not is_transformed() else map(torch.sub, after, before)
        sq_norms = squared_norms([*before, *steps], [*layers, *layers])
        return sq_norms[: len(before)], sq_norms[len(before) :]
    distances, scratch = [], scratch.as_strided((scratch.numel(),), (1,))
    for a, b in zip(after, before, strict=True):
        # one at a time: it is still in the cache when its norm is taken
        difference = scratch[: b.numel()].view(b.shape)
        distances.append(cpu_squared_norm(torch.sub(a, b, out=difference)))
    return [cpu_squared_norm(b) for b in before], distances


def _shorten_step(before: Tensor, after: Tensor, factor: float | Tensor) -> None:
    """`after = before + factor * (after - before)`, exactly `after` for a factor of 1 and `before` for 0."""
    if isinstance(factor, float) or (after.dtype == factor.dtype and not is_transformed()):
        torch.lerp(before, after, factor, out=after)
    else:
        after.copy_(torch.lerp(before.to(factor.dtype), after.to(factor.dtype), factor))
