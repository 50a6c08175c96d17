"""What training minimizes."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def ctc_loss(
    log_probs_BTV: Tensor,
    lens_B: Tensor,
    targets_BU: Tensor,
    target_lens_B: Tensor,
    blank: int,
    reduction: str = "mean_batch",
) -> Tensor:
    """Mean over the batch of :func:`ctc_losses`.

    Args:
        log_probs_BTV: log-probabilities, ``(batch, frames, classes)``.
        lens_B: valid frames of each utterance.
        targets_BU: class indices, ``(batch, characters)``; entries beyond ``target_lens_B`` are ignored.
        target_lens_B: characters of each text.
        blank: index of the blank class.
        reduction: NeMo's ``"mean_volume"`` is the mean over the characters of the texts, any other that over the
            utterances. The loss of a step is the mean of these, each times the weight of its micro-batch, which is
            where ``"sum"`` comes in (`GlobalBatchSampler`).
    """
    losses_B = ctc_losses(log_probs_BTV, lens_B, targets_BU, target_lens_B, blank)
    return losses_B.sum() / target_lens_B.sum() if reduction == "mean_volume" else losses_B.mean()


def ctc_losses(log_probs_BTV: Tensor, lens_B: Tensor, targets_BU: Tensor, target_lens_B: Tensor, blank: int) -> Tensor:
    """CTC loss of each utterance, in float32 at least.

    An utterance too short for its text has an infinite loss; the data module refuses
    such utterances when it reads the manifest, so here infinity stays visible instead of being zeroed.

    Args:
        log_probs_BTV: log-probabilities, ``(batch, frames, classes)``.
        lens_B: valid frames of each utterance.
        targets_BU: class indices, ``(batch, characters)``; entries beyond ``target_lens_B`` are ignored.
        target_lens_B: characters of each text.
        blank: index of the blank class.
    """
    # the CTC recursion loses too much in half precision
    log_probs_TBV = log_probs_BTV.to(torch.promote_types(log_probs_BTV.dtype, torch.float32)).transpose(0, 1)
    return F.ctc_loss(log_probs_TBV, targets_BU, lens_B, target_lens_B, blank=blank, reduction="none")


class MeanLoss:
    """The mean loss over some micro-batches of this rank: ``sum(weight * loss) / sum(weight)``.

    What a training step returns is ``weight * loss``, the weight in proportion to the utterances of the micro-batch
    (with ``mean_volume`` to their characters), and Lightning divides it by the number of micro-batches in an optimizer
    step. On one rank the mean over a whole step is what the step minimizes, or with ``sum`` that by its number of
    utterances; on several that is the mean of theirs, weighted likewise.

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
