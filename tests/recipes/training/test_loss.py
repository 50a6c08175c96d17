"""The loss: NeMo's mean over the utterances, in single precision, and infinite where a text cannot be spelled."""

import pytest
import torch
from torch.nn import functional as F

from lightning_novograd.recipes.asr.training.loss import ctc_loss, ctc_losses

LENS, TARGETS, TARGET_LENS = torch.tensor([9, 6]), torch.tensor([[0, 1, 1, 2], [2, 0, 9, 9]]), torch.tensor([4, 2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_utterance_weighs_the_same(dtype):
    log_probs = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0)).log_softmax(-1).to(dtype)
    loss = ctc_loss(log_probs, LENS, TARGETS, TARGET_LENS, blank=3)
    assert loss.dtype == torch.float32
    each = [
        F.ctc_loss(log_probs[i, :n].float(), TARGETS[i, :m], n, m, blank=3, reduction="sum")
        for i, (n, m) in enumerate(zip(LENS, TARGET_LENS, strict=True))
    ]
    torch.testing.assert_close(loss, sum(each) / 2)


def test_by_volume_every_character_weighs_the_same():
    log_probs = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(-1)
    batch = (log_probs, LENS, TARGETS, TARGET_LENS)
    losses = ctc_losses(*batch, blank=3)
    torch.testing.assert_close(ctc_loss(*batch, blank=3, reduction="mean_volume"), losses.sum() / 6)
    for reduction in ("mean_batch", "sum"):  # where the weight of a micro-batch makes it a sum
        assert ctc_loss(*batch, blank=3, reduction=reduction) == losses.mean()


def test_double_precision_stays():
    log_probs = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(-1)
    assert ctc_losses(log_probs, LENS, TARGETS, TARGET_LENS, blank=3).dtype == torch.float64


def test_a_text_that_does_not_fit_in_is_infinite():
    log_probs = torch.zeros(1, 2, 4).log_softmax(-1)
    assert ctc_loss(log_probs, torch.tensor([2]), TARGETS[:1], TARGET_LENS[:1], blank=3).item() == float("inf")
