"""What training minimizes."""

from torch import Tensor
from torch.nn import functional as F


def ctc_loss(log_probs_BTV: Tensor, lens_B: Tensor, targets_BU: Tensor, target_lens_B: Tensor, blank: int) -> Tensor:
    """Mean over the batch of :func:`ctc_losses` (NeMo's ``mean_batch``).

    Args:
        log_probs_BTV: log-probabilities, ``(batch, frames, classes)``.
        lens_B: valid frames of each utterance.
        targets_BU: class indices, ``(batch, characters)``; entries beyond ``target_lens_B`` are ignored.
        target_lens_B: characters of each text.
        blank: index of the blank class.
    """
    return ctc_losses(log_probs_BTV, lens_B, targets_BU, target_lens_B, blank).mean()


def ctc_losses(log_probs_BTV: Tensor, lens_B: Tensor, targets_BU: Tensor, target_lens_B: Tensor, blank: int) -> Tensor:
    """CTC loss of each utterance, in float32.

    Every utterance weighs the same, however long its text, so that the mean over equal micro-batches and ranks is
    the mean over the global batch. An utterance too short for its text has an infinite loss; the data module refuses
    such utterances when it reads the manifest, so here infinity stays visible instead of being zeroed.

    Args:
        log_probs_BTV: log-probabilities, ``(batch, frames, classes)``.
        lens_B: valid frames of each utterance.
        targets_BU: class indices, ``(batch, characters)``; entries beyond ``target_lens_B`` are ignored.
        target_lens_B: characters of each text.
        blank: index of the blank class.
    """
    # the CTC recursion loses too much in half precision
    log_probs_TBV = log_probs_BTV.float().transpose(0, 1)
    return F.ctc_loss(log_probs_TBV, targets_BU, lens_B, target_lens_B, blank=blank, reduction="none")
