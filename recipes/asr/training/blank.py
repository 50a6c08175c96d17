"""Validations of which a model transcribes nothing: every frame is CTC's blank. Why that may be, from what is seen."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_novograd.recipes.asr.data.dataset import Batch

CAUSES = (
    "too few steps so far, a learning rate that is too high or too low, silent audio, texts that need more frames than "
    "the model has, texts that are not those of the audio"
)
EARLY = 1000  # optimizer steps in which CTC models mostly say nothing yet
TIGHT = 0.9  # of an utterance's frames that its text needs; beyond, there is one path or few
_FLAT = 0.02  # of the loss: less is no change


class Seen(NamedTuple):
    """Sums over utterances of a validation.

    Args:
        utterances: their number.
        spoken: those with a transcript, however wrong.
        blank: sum of each one's mean probability of the blank.
        tight: those whose text needs nearly all frames.
        silent: those whose samples are all the same.
    """

    utterances: int = 0
    spoken: int = 0
    blank: float = 0.0
    tight: int = 0
    silent: int = 0

    def __add__(self, other: "Seen") -> "Seen":  # type: ignore[override]
        return Seen(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))  # type: ignore[arg-type]


class Progress(NamedTuple):
    """How the training stands.

    Args:
        steps: optimizer steps so far.
        total: of the whole run; -1 if nobody knows.
        lr: the largest of the groups now.
        base_lr: the largest of the block.
        losses: of the dev set, of every validation so far.
    """

    steps: int
    total: int
    lr: float
    base_lr: float
    losses: Sequence[float]


def look_at(log_probs_BTV: Tensor, lens_B: Tensor, hypotheses: Sequence[str], batch: Batch, blank: int) -> Seen:
    """What one batch of a validation shows.

    Args:
        log_probs_BTV: log-probabilities, ``(batch, frames, classes)``.
        lens_B: valid frames of each utterance.
        hypotheses: its transcripts.
        batch: of audio and texts.
        blank: index of the blank class.
    """
    frames_T = torch.arange(log_probs_BTV.shape[1], device=lens_B.device)
    valid_BT = frames_T < lens_B[:, None]
    blank_B = (log_probs_BTV[..., blank].float().exp() * valid_BT).sum(1) / lens_B.clamp(min=1)
    # between two equal characters CTC needs a blank
    within = torch.arange(1, batch.targets_BU.shape[1], device=lens_B.device) < batch.target_lens_B[:, None]
    doubled_B = ((batch.targets_BU[:, 1:] == batch.targets_BU[:, :-1]) & within).sum(1)
    tight = (batch.target_lens_B + doubled_B > TIGHT * lens_B).sum()
    waves_BS = batch.wave_BS
    inside_BS = torch.arange(waves_BS.shape[1], device=waves_BS.device) < batch.wave_lens_B[:, None]
    silent = ((waves_BS == waves_BS[:, :1]) | ~inside_BS).all(1).sum()
    return Seen(
        len(hypotheses), sum(bool(text.strip()) for text in hypotheses), blank_B.sum().item(), int(tight), int(silent)
    )


def diagnose(seen: Seen, progress: Progress) -> tuple[str, str] | None:
    """Which of the usual causes fits a model that says nothing.

    Args:
        seen: of all ranks' utterances.
        progress: of the training.

    Returns:
        The cause's name and a sentence with what speaks for it; None if a single utterance has a transcript.

    Example:
        >>> seen = Seen(utterances=10, blank=9.9)
        >>> diagnose(seen, Progress(steps=5000, total=9000, lr=0.0, base_lr=0.0, losses=[3.0, 3.0]))[0]
        'learning rate 0'
    """
    if seen.spoken or not seen.utterances:
        return None
    count, losses = seen.utterances, progress.losses
    if 2 * seen.silent >= count:
        return "silent audio", f"the samples of {seen.silent} of {count} utterances are all the same number"
    if 2 * seen.tight >= count:
        return "few frames", (
            f"the texts of {seen.tight} of {count} utterances need more than {TIGHT:.0%} of the model's frames: a "
            "smaller stride, or longer utterances, give CTC room"
        )
    if progress.lr == 0 == progress.base_lr:
        return "learning rate 0", "optim.lr is 0, so nothing is learned"
    is_first_half = progress.total <= 0 or 2 * progress.steps < progress.total
    if is_first_half and progress.lr < 0.5 * progress.base_lr:
        return "warmup", (
            f"the learning rate is at {progress.lr:.3g} of {progress.base_lr:.3g} after {progress.steps} steps: wait "
            "for the end of the warmup"
        )
    if len(losses) > 1 and not losses[-1] < (1 + 5 * _FLAT) * min(losses):
        return "learning rate too high", (
            f"the loss has risen from {min(losses):.4g} to {losses[-1]:.4g}: a lower optim.lr (now {progress.lr:.3g}), "
            "a longer warmup or optim.grad_clip_norm may help"
        )
    if len(losses) > 1 and losses[-1] < (1 - _FLAT) * losses[-2]:
        return "too few steps", f"the loss still falls, from {losses[-2]:.4g} to {losses[-1]:.4g}: wait"
    if progress.steps < EARLY:
        return "too few steps", f"there were {progress.steps}, and most models say nothing in the first {EARLY}: wait"
    if len(losses) > 1 and losses[-1] > (1 - _FLAT) * losses[0]:
        return "learning rate too low", (
            f"the loss has hardly moved in {progress.steps} steps, from {losses[0]:.4g} to {losses[-1]:.4g}: a higher "
            f"optim.lr (now {progress.lr:.3g}) may help"
        )
    return "texts of other audio", (
        f"the loss no longer falls ({losses[-1]:.4g}) and the blank has {seen.blank / count:.0%} of the probability: "
        "the model has learned how often characters occur, and no sounds; look whether texts and audio belong "
        "together, whether their language is that of the alphabet, and try a higher optim.lr"
    )
