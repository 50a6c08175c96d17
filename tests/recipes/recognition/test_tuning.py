"""Weights of a language model on a set whose best pair is known."""

import pytest
import torch
from arpa import WORDS, write_arpa
from tone_model import ALPHABET, ToneRecognizer

from lightning_novograd.recipes.asr.recognition.beam import BeamDecoder
from lightning_novograd.recipes.asr.recognition.tuning import LM_WEIGHTS, WORD_BONUSES, Trial, search, tune


def bowl(lm_weight, word_bonus):
    """Errors with their least at 1.0 and 2.0; no point of the grid off both lines is nearer."""
    return Trial(lm_weight, word_bonus, abs(lm_weight - 1.0) + abs(word_bonus - 2.0), 0.0)


def test_the_search_ends_at_the_least_of_a_bowl_and_tries_no_pair_twice():
    asked = []
    trials = search(lambda *pair: asked.append(pair) or bowl(*pair), 0.5, 1.5)
    assert [trial[:2] for trial in trials] == asked
    assert len(asked) == len(set(asked)) < len(LM_WEIGHTS) * len(WORD_BONUSES)
    assert min(trials, key=lambda trial: trial.wer)[:2] == (1.0, 2.0)
    assert asked[0] == (0.5, 1.5)
    assert {(weight, 2.0) for weight in LM_WEIGHTS} | {(1.0, bonus) for bonus in WORD_BONUSES} <= set(asked)


def test_where_nothing_helps_it_stays_where_it_began():
    trials = search(lambda *pair: Trial(*pair, 0.25, 0.1), 0.5, 1.5)
    assert len(trials) == len(LM_WEIGHTS) + len(WORD_BONUSES) - 1
    assert search(lambda *pair: Trial(*pair, 0.25, 0.1), 0.6, None) == [
        Trial(weight, None, 0.25, 0.1) for weight in (0.6, *LM_WEIGHTS)
    ]


def test_a_decoder_with_other_weights_is_as_one_that_was_built_with_them(tmp_path, monkeypatch):
    pytest.importorskip("flashlight.lib.text.decoder.kenlm", reason="flashlight-text is not installed")
    arpa = write_arpa(tmp_path / "lm.arpa", WORDS)
    decoder = BeamDecoder(ALPHABET, arpa)
    log_probs = torch.randn(20, 12, 4, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    lens = torch.full((20,), 12)
    built = {pair: BeamDecoder(ALPHABET, arpa, lm_weight=pair[0], word_bonus=pair[1]) for pair in ((0, 0), (2.0, 3.0))}
    monkeypatch.setattr(BeamDecoder, "_language_model", None)  # it is not read again
    hears, texts = ToneRecognizer(), {}
    for pair, other in built.items():
        texts[pair] = [hears.text(path) for path in other(log_probs, lens)]
        weighted = decoder.with_weights(*pair)
        assert [hears.text(path) for path in weighted(log_probs, lens)] == texts[pair]
        assert weighted.describe() == other.describe()
    assert texts[0, 0] != texts[2.0, 3.0]
    assert (decoder.lm_weight, decoder.word_bonus) == (0.5, 1.5)

    references = [text or "ab" for text in texts[2.0, 3.0]]
    tuned = tune(hears, decoder, list(log_probs), references)
    assert tuned.hypotheses == [hears.text(path) for path in tuned.decoder(log_probs, lens)]
    assert tuned.best == min(tuned.trials, key=lambda trial: (trial.wer, trial.cer))
    assert (tuned.decoder.lm_weight, tuned.decoder.word_bonus) == tuned.best[:2]
    at_first = next(trial for trial in tuned.trials if trial[:2] == (0.5, 1.5))
    assert tuned.best.wer < at_first.wer
