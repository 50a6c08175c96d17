"""The loss of a training as it is shown."""

from typing import Any

import torch
from torch import Tensor


class MeanLoss:
    """The mean loss over some micro-batches of this rank: ``sum(weight * loss) / sum(weight)``.

    What a training step returns is ``weight * loss``, the weight in proportion to what the micro-batch counts in the
    step (its examples, or their characters), and Lightning divides it by the number of micro-batches in an optimizer
    step. On one rank the mean over a whole step is what the step minimizes, or, where that is a sum, the sum by what
    the step counts; on several that is the mean of theirs, weighted likewise.

    Args:
        finite_only: leave out micro-batches whose loss is not finite.
    """

    def __init__(self, finite_only: bool = False) -> None:
        self.finite_only = finite_only
        self._sums: Tensor | None = None  # of losses and weights, on the device until they are asked for

    def add(self, trainer: Any, outputs: Any, batch: Any) -> None:
        """Take a micro-batch.

        Args:
            trainer: which accumulates.
            outputs: Lightning's in ``on_train_batch_end``.
            batch: with its weight.
        """
        loss = torch.as_tensor(outputs["loss"] if isinstance(outputs, dict) else outputs).detach().float()
        seen = torch.stack([loss * trainer.accumulate_grad_batches, torch.full_like(loss, batch.weight)])
        if self.finite_only:
            seen = seen.where(loss.isfinite(), 0.0)
        self._sums = seen if self._sums is None else self._sums + seen

    @property
    def mean(self) -> float:
        """NaN if there is none; waits for the device."""
        if self._sums is None:
            return float("nan")
        loss, weight = self._sums.tolist()
        return loss / weight if weight else float("nan")
