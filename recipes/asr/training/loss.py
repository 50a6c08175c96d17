"""What training minimizes."""

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
