"""Beam search against all paths of short utterances, summed one by one."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from arpa import LETTERS, WORDS, write_arpa

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.recognition import beam
from lightning_novograd.recipes.asr.recognition.beam import BeamDecoder
from lightning_novograd.recipes.asr.recognition.words import words_of
from lightning_novograd.recipes.asr.text.alphabet import Alphabet
from lightning_novograd.recipes.asr.text.decode import best_paths, greedy, runs

ALPHABET = Alphabet(" ab")
BLANK = ALPHABET.blank


def lm_score(grams: dict[tuple[str, ...], tuple[float, float]], units: list[str]) -> float:
    """ln P of a sentence by its bigrams, and by the unigram and the back-off weight where there is none."""
    total = 0.0
    for pair in itertools.pairwise(["<s>", *units, "</s>"]):
        total += grams[pair][0] if pair in grams else grams[pair[:1]][1] + grams[pair[1:]][0]
    return total * math.log(10)


@functools.cache
def all_texts(count: int, seed: int) -> dict[str, float]:
    """ln P of every text in `frames`, spaces and all: each path is collapsed and added to its text."""
    scores_TV = frames(count, seed).log_softmax(-1)[0].numpy()
    texts: dict[str, float] = {}
    for path in itertools.product(range(len(ALPHABET) + 1), repeat=len(scores_TV)):
        text = ALPHABET.decode(k for k, _ in itertools.groupby(path) if k != BLANK)
        score = float(sum(scores_TV[t, k] for t, k in enumerate(path)))
        texts[text] = float(np.logaddexp(texts.get(text, -np.inf), score))
    return texts


def frames(count: int, seed: int) -> torch.Tensor:
    return 1.5 * torch.randn(1, count, BLANK + 1, generator=torch.Generator().manual_seed(seed))


def text_of(path) -> str:
    return ALPHABET.decode(runs(path.ids_T, BLANK)[:, 0].tolist())


def decode(decoder: BeamDecoder, log_probs_BTV: torch.Tensor) -> str:
    [path] = decoder(log_probs_BTV, torch.tensor([log_probs_BTV.shape[1]]))
    return text_of(path)


@pytest.fixture
def flashlight():
    return pytest.importorskip("flashlight.lib.text.decoder.kenlm", reason="flashlight-text is not installed")


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("weight", "bonus"), [(0.0, 0.0), (0.7, 0.5), (2.0, 4.0)])
def test_words_of_a_model_are_found_as_by_going_over_all_paths(flashlight, tmp_path, seed, weight, bonus):
    log_probs_BTV = frames(6, seed).log_softmax(-1)
    lexicon = {word for (word, *rest) in WORDS if not rest} - {"<unk>", "<s>", "</s>"}
    scores: dict[str, float] = {}
    for text, score in all_texts(6, seed).items():
        words = text.split()
        if lexicon.issuperset(words):
            scores[" ".join(words)] = float(np.logaddexp(scores.get(" ".join(words), -np.inf), score))
    total = {text: s + weight * lm_score(WORDS, text.split()) + bonus * len(text.split()) for text, s in scores.items()}
    arpa = write_arpa(tmp_path / "lm.arpa", WORDS)
    decoder = BeamDecoder(ALPHABET, arpa, beam_size=1000, lm_weight=weight, word_bonus=bonus)
    assert decode(decoder, log_probs_BTV) == max(total, key=total.__getitem__)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("weight", [0.0, 0.7, 2.0])
def test_a_model_of_characters_leaves_the_spelling_free(flashlight, tmp_path, seed, weight):
    log_probs_BTV = frames(5, seed).log_softmax(-1)
    total = {
        text: score + weight * lm_score(LETTERS, list(text.replace(" ", "|")))
        for text, score in all_texts(5, seed).items()
    }
    arpa = write_arpa(tmp_path / "lm.arpa", LETTERS)
    decoder = BeamDecoder(ALPHABET, arpa, beam_size=1000, lm_weight=weight)
    assert decode(decoder, log_probs_BTV) == " ".join(max(total, key=total.__getitem__).split())


@pytest.mark.parametrize("seed", range(12))
def test_without_a_language_model_it_is_the_most_likely_text(flashlight, seed):
    log_probs_BTV = frames(5, seed).log_softmax(-1)
    texts = all_texts(5, seed)
    best = max(texts, key=texts.__getitem__)
    assert decode(BeamDecoder(ALPHABET, beam_size=1000), log_probs_BTV) == " ".join(best.split())


def test_the_language_model_corrects_what_greedy_decoding_hears(flashlight, tmp_path):
    heard = "bb- -b-a"  # "b ba", where "ab ba" is nearly as likely
    probs = torch.full((1, len(heard), 4), 0.05)
    for t, label in enumerate(heard):
        probs[0, t, BLANK if label == "-" else ALPHABET.labels.index(label)] = 0.85
    probs[0, 0] = torch.tensor([0.05, 0.4, 0.5, 0.05])
    log_probs_BTV, lens = probs.log(), torch.tensor([len(heard)])
    assert greedy(log_probs_BTV, lens, ALPHABET) == ["b ba"]
    [path] = BeamDecoder(ALPHABET, write_arpa(tmp_path / "lm.arpa", WORDS))(log_probs_BTV, lens)
    assert text_of(path) == "ab ba"
    words = words_of(path, ALPHABET, 0.02)
    assert [(word.text, word.start, word.end) for word in words] == [("ab", 0.0, 0.04), ("ba", 0.1, 0.16)]
    assert words[0].confidence == pytest.approx(math.sqrt(0.4 * 0.85), abs=1e-4)


def test_each_row_is_decoded_by_itself_and_padding_never_counts(flashlight, tmp_path):
    decoder = BeamDecoder(ALPHABET, write_arpa(tmp_path / "lm.arpa", WORDS), beam_size=50)
    log_probs_BTV = torch.cat([frames(30, seed) for seed in range(4)]).log_softmax(-1)
    lens = torch.tensor([30, 17, 1, 0])
    paths = decoder(log_probs_BTV, lens)
    assert [len(path.ids_T) for path in paths] == lens.tolist()
    for row, n in enumerate(lens.tolist()):
        if n:
            [alone] = decoder(log_probs_BTV[row : row + 1, :n], torch.tensor([n]))
            assert alone.ids_T.tolist() == paths[row].ids_T.tolist()
        expected = log_probs_BTV[row].numpy()[np.arange(n), paths[row].ids_T]
        assert np.array_equal(paths[row].log_probs_T, expected)


def test_one_space_between_words_and_none_around_them(flashlight, tmp_path):
    frames_of = {"-": BLANK, " ": 0, "a": 1, "b": 2}
    sure = torch.full((1, 14, 4), -20.0)
    for t, label in enumerate(" - ab- - b -a "):
        sure[0, t, frames_of[label]] = 0.0
    assert decode(BeamDecoder(ALPHABET), sure) == "ab b a"
    assert decode(BeamDecoder(ALPHABET, write_arpa(tmp_path / "lm.arpa", WORDS)), sure[:, :10]) == "ab b"


def test_what_no_word_can_begin_with_is_silence(flashlight, tmp_path):
    grams = {k: v for k, v in WORDS.items() if k not in (("b",), ("ba",)) and len(k) == 1} | {("ab",): (-0.1, 0.0)}
    sure = torch.full((1, 1, 4), -20.0)
    sure[0, :, 1] = 0.0  # an "a", and no time for its "b"
    decoder = BeamDecoder(
        ALPHABET, write_arpa(tmp_path / "lm.arpa", {**grams, ("<s>", "ab"): (-0.1, 0.0)}), beam_size=1
    )
    assert decode(decoder, sure) == ""


def test_without_spaces_in_the_alphabet(flashlight, tmp_path):
    alphabet = Alphabet("ab")
    log_probs_BTV = torch.full((1, 3, 3), -20.0)
    for t, label in enumerate([0, 2, 1]):
        log_probs_BTV[0, t, label] = 0.0
    letters = {k: v for k, v in LETTERS.items() if "|" not in k}
    arpa = write_arpa(tmp_path / "letters.arpa", letters)
    for decoder in (BeamDecoder(alphabet), BeamDecoder(alphabet, arpa)):
        [path] = decoder(log_probs_BTV, torch.tensor([3]))
        assert path.ids_T.tolist() == best_paths(log_probs_BTV, torch.tensor([3]), alphabet)[0].ids_T.tolist()
    with pytest.raises(ConfigError, match="is a model of words, but the alphabet has no space to end them"):
        BeamDecoder(alphabet, write_arpa(tmp_path / "words.arpa", WORDS))


def test_arguments_and_what_is_said_of_them(flashlight, tmp_path):
    words, letters = (write_arpa(tmp_path / f"{n}.arpa", g) for n, g in (("words", WORDS), ("letters", LETTERS)))
    assert BeamDecoder(ALPHABET, beam_size=7).describe() == "beam search, 7 hypotheses"
    said = "beam search, 100 hypotheses, words.arpa with weight 0.5, word bonus 1.5"
    assert BeamDecoder(ALPHABET, words).describe() == said
    said = "beam search, 100 hypotheses, letters.arpa with weight 2"
    assert BeamDecoder(ALPHABET, letters, lm_weight=2.0).describe() == said
    with pytest.raises(ConfigError, match="--word-bonus: has no effect without a language model of words"):
        BeamDecoder(ALPHABET, letters, word_bonus=1.0)
    with pytest.raises(DataError, match=r"words\.arpa: the alphabet spells none of its words, such as 'ab'$"):
        BeamDecoder(Alphabet(" xyz"), words)
    with pytest.raises(ValueError, match="the model has 4 classes, the alphabet 2 characters and a blank"):
        BeamDecoder(Alphabet("ab"))(torch.zeros(1, 2, 4), torch.tensor([2]))
    (tmp_path / "bad.arpa").write_text(words.read_text().replace("ngram 1=6", "ngram 1=9"))
    with pytest.raises(DataError) as error:
        BeamDecoder(ALPHABET, tmp_path / "bad.arpa")
    assert str(error.value).startswith(f"language model {tmp_path / 'bad.arpa'} cannot be read: Could not parse ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"beam_size": 0}, "--beam-size: must be at least 1, not 0"),
        ({"lm_weight": -0.5}, "--lm-weight: must be a number from 0, not -0.5"),
        ({"lm_weight": math.nan}, "--lm-weight: must be a number from 0, not nan"),
        ({"word_bonus": math.inf}, "--word-bonus: must be a number, not inf"),
        ({"word_bonus": 1.0}, "--word-bonus: has no effect without a language model of words"),
    ],
)
def test_values_that_cannot_be(options, problem):
    with pytest.raises(ConfigError) as error:
        BeamDecoder(ALPHABET, **options)
    assert str(error.value) == problem


def test_the_package_that_is_missing_is_named(monkeypatch, tmp_path):
    def missing(self, units):
        raise ImportError("No module named 'flashlight'")

    monkeypatch.setattr(BeamDecoder, "_free_decoder", missing)
    monkeypatch.setattr(BeamDecoder, "_lexicon_decoder", missing)
    with pytest.raises(ConfigError) as error:
        BeamDecoder(ALPHABET)
    assert str(error.value) == f"--beam-size: {beam._MISSING}"
    with pytest.raises(ConfigError) as error:
        BeamDecoder(ALPHABET, write_arpa(tmp_path / "lm.arpa", WORDS))
    assert str(error.value) == "--lm: needs the package flashlight-text: pip install 'lightning-novograd[lm]'"
