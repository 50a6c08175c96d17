"""Weights of a language model, sought on a development set."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from lightning_novograd.recipes.asr.recognition.beam import BeamDecoder
from lightning_novograd.recipes.asr.recognition.recognizer import Recognizer
from lightning_novograd.recipes.asr.text.metrics import ErrorRate

LM_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
WORD_BONUSES = (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0)  # nats


class Trial(NamedTuple):
    """Errors of a set, as fractions of its words and characters, with one pair of weights."""

    lm_weight: float
    word_bonus: float | None
    wer: float
    cer: float


@dataclass(frozen=True)
class Tuned:
    """What a search has found.

    Args:
        decoder: with the best weights.
        best: their errors.
        trials: all that were tried, in this order.
        hypotheses: of the best, one per utterance.
    """

    decoder: BeamDecoder
    best: Trial
    trials: list[Trial]
    hypotheses: list[str]


def tune(recognizer: Recognizer, decoder: BeamDecoder, log_probs: Sequence[Tensor], references: Sequence[str]) -> Tuned:
    """Search the weights with the fewest errors in words, of equal ones in characters.

    `LM_WEIGHTS` are tried at the best word bonus so far, then `WORD_BONUSES` at the best LM weight, and so on until all
    of both have been tried beside the best pair; a model of characters has no bonus. Each pair decodes the same
    log-probabilities anew: what rises with other weights need not be in the beam, so nothing is rescored.

    Args:
        recognizer: makes texts of paths.
        decoder: with a language model; its weights are where the search begins.
        log_probs: of each utterance, (frames, classes).
        references: what is said in them.
    """
    heard: dict[tuple[float, float | None], list[str]] = {}

    def errors(lm_weight: float, word_bonus: float | None) -> Trial:
        weighted = decoder.with_weights(lm_weight, word_bonus)
        heard[lm_weight, word_bonus] = [recognizer.text(weighted.path(scores.numpy())) for scores in log_probs]
        rates = ErrorRate("word"), ErrorRate("char")
        for rate in rates:
            rate.update(heard[lm_weight, word_bonus], references)
        return Trial(lm_weight, word_bonus, *(rate.compute().item() for rate in rates))

    trials = search(errors, decoder.lm_weight, decoder.word_bonus)
    best = best_of(trials)
    pair = best.lm_weight, best.word_bonus
    return Tuned(decoder.with_weights(*pair), best, trials, heard[pair])


def search(errors: Callable[[float, float | None], Trial], lm_weight: float, word_bonus: float | None) -> list[Trial]:
    """Try one coordinate of the grid after the other from a pair on; see :func:`tune`.

    Args:
        errors: tries a pair.
        lm_weight: where to begin.
        word_bonus: likewise; None for a model without one.
    """
    tried = {(lm_weight, word_bonus): errors(lm_weight, word_bonus)}

    before = 0
    while len(tried) > before:
        before = len(tried)
        for lines in (LM_WEIGHTS, WORD_BONUSES if word_bonus is not None else ()):
            best = best_of(tried.values())
            for value in lines:
                pair = (value, best.word_bonus) if lines is LM_WEIGHTS else (best.lm_weight, value)
                if pair not in tried:
                    tried[pair] = errors(*pair)
    return list(tried.values())


def best_of(trials: Iterable[Trial]) -> Trial:
    """The one with the fewest errors in words, of equal ones in characters, of equal ones the first."""
    return min(trials, key=lambda trial: (trial.wer, trial.cer))
