"""The layers of a NovoGrad step: parallel lists of parameters, gradients and state."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from lightning_novograd.optim.norms import any_sharded, local_shard, placed_like, real_view, squared_norms


@dataclass(frozen=True, slots=True)
class Layers:
    """Layers that are stepped together, one entry per layer in each list.

    Args:
        params: parameters, or what this process holds of them.
        grads: their gradients, never written.
        exp_avgs: first moments.
        exp_avg_sqs: second moments.
        max_exp_avg_sqs: running maxima of the second moments; empty without `amsgrad`.
        grad_sq_norms: the gradients' squared norms, where the caller knows them.
        wholes: the DTensors that `params` are the local shards of, if any is one.
        has_complex: whether any layer is complex.

    """

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    max_exp_avg_sqs: list[Tensor]
    grad_sq_norms: list[Tensor] | None = None
    wholes: list[Tensor] | None = None
    has_complex: bool = False

    def take(self, indices: Sequence[int]) -> "Layers":
        """The layers at `indices`, in that order."""
        return Layers(
            [self.params[i] for i in indices],
            [self.grads[i] for i in indices],
            [self.exp_avgs[i] for i in indices],
            [self.exp_avg_sqs[i] for i in indices],
            [self.max_exp_avg_sqs[i] for i in indices] if self.max_exp_avg_sqs else [],
            [self.grad_sq_norms[i] for i in indices] if self.grad_sq_norms else self.grad_sq_norms,
            [self.wholes[i] for i in indices] if self.wholes else self.wholes,
            self.has_complex,
        )

    def with_norms(self) -> "Layers":
        """The same layers with `grad_sq_norms`, taken here where the caller did not know them."""
        if self.grad_sq_norms is not None:
            return self
        return replace(self, grad_sq_norms=squared_norms(self.grads))

    def local(self) -> "Layers":
        """The local shards of DTensors; the squared norms are still those of the whole layers."""
        (measured,) = with_sharded_norms([self]) if self.grad_sq_norms is None else (self,)
        return replace(
            measured,
            params=[local_shard(t) for t in measured.params],
            grads=[local_shard(t) for t in measured.grads],
            exp_avgs=[local_shard(t) for t in measured.exp_avgs],
            wholes=self.params,
        )

    def real(self) -> "Layers":
        """Complex layers as real ones with one more dimension, in the same memory where it is written to."""
        return replace(
            self,
            params=[real_view(t) for t in self.params],
            grads=[real_view(t.resolve_conj()) for t in self.grads],
            exp_avgs=[real_view(t) for t in self.exp_avgs],
            has_complex=False,
        )


def with_sharded_norms(groups: Sequence[Layers]) -> list[Layers]:
    """Groups of layers with the gradients' squared norms if any layer is a DTensor; else as they are.

    All groups' norms are summed over the processes at once. Gradients are laid out as their parameters first.
    """
    if not any(any_sharded(layers.params) for layers in groups):
        return list(groups)
    placed = [
        [placed_like(grad, param) for grad, param in zip(layers.grads, layers.params, strict=True)] for layers in groups
    ]
    sq_norms = iter(squared_norms([grad for grads in placed for grad in grads]))
    return [
        replace(layers, grads=grads, grad_sq_norms=[next(sq_norms) for _ in grads])
        for layers, grads in zip(groups, placed, strict=True)
    ]
