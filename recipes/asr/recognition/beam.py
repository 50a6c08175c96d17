"""Beam search with a language model."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import Tensor

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.recognition.language_model import SPACES, is_of_characters, read_words, spellings
from lightning_novograd.recipes.asr.text.alphabet import Alphabet
from lightning_novograd.recipes.asr.text.decode import CTCPath, check_classes

BEAM_SIZE = 100
LM_WEIGHT, WORD_BONUS = 0.5, 1.5
# nats below the best hypothesis at which others are given up
_THRESHOLD = 25.0
# nats; the log-probability of what cannot be
_NEVER = -1e4
_MISSING = "needs the package flashlight-text: pip install 'lightning-novograd[lm]'"


class BeamDecoder:
    """The best text of a beam, by the acoustic model and an n-gram language model of KenLM's.

    With natural logarithms::

        score(text) = ln P_CTC(text) + lm_weight * ln P_LM(text) + word_bonus * words(text)

    P_CTC sums over all paths in the beam that collapse to the text. With a model of words, the words of the text are
    those of the model that the alphabet can spell; a model of characters (one of them "|", "<space>" or "▁"), or none,
    leaves the spelling free.

    Args:
        alphabet: of the acoustic model.
        lm: an ARPA file or KenLM binary; None for no language model.
        beam_size: hypotheses that are kept from one frame to the next, at least 1.
        lm_weight: of the language model, at least 0.
        word_bonus: nats for each word, against the language model's liking for few words.

    Raises:
        ConfigError: an argument is out of range or has no effect; the package is missing.
        DataError: the language model cannot be read, or the alphabet spells none of its words.

    Source: flashlight-text's decoders. Paths are summed exactly while the beam is wide enough.
    """

    def __init__(
        self,
        alphabet: Alphabet,
        lm: Path | None = None,
        *,
        beam_size: int = BEAM_SIZE,
        lm_weight: float = LM_WEIGHT,
        word_bonus: float | None = None,
    ) -> None:
        if beam_size < 1:
            raise ConfigError("--beam-size", f"must be at least 1, not {beam_size}")
        _check_weights(lm_weight, word_bonus)
        self.alphabet, self.lm = alphabet, lm
        self.beam_size, self.lm_weight, self.word_bonus = beam_size, lm_weight, word_bonus
        words = [] if lm is None else read_words(lm)
        self._of_words = lm is not None and not is_of_characters(words, alphabet)
        if not self._of_words and word_bonus is not None:
            raise ConfigError("--word-bonus", "has no effect without a language model of words")
        if self._of_words and word_bonus is None:
            self.word_bonus = WORD_BONUS
        try:
            self._weighted = self._lexicon_decoder(words) if self._of_words else self._free_decoder(words)
        except ImportError:
            raise ConfigError("--lm" if lm else "--beam-size", _MISSING) from None
        self._decoder = self._weighted(self.lm_weight, self.word_bonus)

    def with_weights(self, lm_weight: float, word_bonus: float | None = None) -> Self:
        """The same decoder with other weights; the language model is not read again.

        Raises:
            ConfigError: a weight is out of range.
        """
        _check_weights(lm_weight, word_bonus)
        other = copy.copy(self)
        other.lm_weight, other.word_bonus = lm_weight, word_bonus
        other._decoder = self._weighted(lm_weight, word_bonus)
        return other

    def __call__(self, log_probs_BTV: Tensor, lens_B: Tensor) -> list[CTCPath]:
        """The path of the best text, for each utterance; it has one space between words, and none around them."""
        check_classes(log_probs_BTV, self.alphabet)
        scores_BTV = log_probs_BTV.float().cpu().numpy()
        return [self.path(scores[:n]) for scores, n in zip(scores_BTV, lens_B.tolist(), strict=True)]

    def describe(self) -> str:
        """In words, for a report."""
        if self.lm is None:
            return f"beam search, {self.beam_size} hypotheses"
        bonus = "" if self.word_bonus is None else f", word bonus {self.word_bonus:g}"
        return f"beam search, {self.beam_size} hypotheses, {self.lm.name} with weight {self.lm_weight:g}{bonus}"

    def path(self, scores_TV: np.ndarray) -> CTCPath:
        """The path of the best text of one utterance, of its log-probabilities in float32."""
        frames, classes = scores_TV.shape
        if not frames:
            return CTCPath(np.zeros(0, np.int64), np.zeros(0, np.float32))
        # words end with a space: one frame more has it for the last one
        padded = np.full((frames + 1, classes), _NEVER, np.float32)
        padded[:frames] = np.maximum(scores_TV, _NEVER)
        last = self.alphabet.labels.index(" ") if self._of_words else self.alphabet.blank
        padded[frames, last] = 0.0
        result = self._decoder.decode(padded.ctypes.data, *padded.shape)[0]
        ids_T = self._tidy(np.array(result.tokens[1 : frames + 1]), whole=result.tokens[frames + 1] == last)
        return CTCPath(ids_T, scores_TV[np.arange(frames), ids_T])

    def _tidy(self, ids_T: np.ndarray, whole: bool) -> np.ndarray:
        """The path with blanks for spaces that separate no words, and for a last word that is not whole."""
        if " " not in self.alphabet.labels:
            return ids_T
        space, blank = self.alphabet.labels.index(" "), self.alphabet.blank
        spoken = np.flatnonzero((ids_T != space) & (ids_T != blank))
        spaces = np.flatnonzero(ids_T == space)
        if not whole and len(spoken):
            begun = spaces[-1] if len(spaces) else 0
            ids_T[begun:] = blank
            spoken = spoken[spoken < begun]
        # frames between one character and the next
        for first, last in zip([-1, *spoken], [*spoken, len(ids_T)], strict=True):
            between = ids_T[first + 1 : last]
            at = np.flatnonzero(between == space)
            if first < 0 or last == len(ids_T):
                between[at] = blank
            else:
                between[at[1:]] = blank
        return ids_T

    def _lexicon_decoder(self, words: list[str]) -> Callable[[float, float | None], Any]:
        from flashlight.lib.text import decoder as flashlight

        if " " not in self.alphabet.labels:
            raise ConfigError("--lm", f"{self.lm} is a model of words, but the alphabet has no space to end them")
        spelt = spellings(words, self.alphabet)
        if not spelt:
            raise DataError(f"language model {self.lm}: the alphabet spells none of its words, such as {words[0]!r}")
        lm = self._language_model([*spelt])
        space, start = self.alphabet.labels.index(" "), lm.start(False)
        trie = flashlight.Trie(self.alphabet.blank + 1, space)
        for index, ids in enumerate(spelt.values()):
            trie.insert([*ids, space], index, lm.score(start, index)[1])
        trie.smear(flashlight.SmearingMode.MAX)

        def weighted(lm_weight: float, word_bonus: float | None) -> Any:
            options = flashlight.LexiconDecoderOptions(
                self.beam_size,
                self.alphabet.blank + 1,
                _THRESHOLD,
                lm_weight * math.log(10),  # KenLM's logarithms are decimal
                word_bonus,
                -math.inf,  # words outside the model
                0.0,
                True,  # sum over paths
                flashlight.CriterionType.CTC,
            )
            return flashlight.LexiconDecoder(options, trie, lm, space, self.alphabet.blank, -1, [], False)

        return weighted

    def _free_decoder(self, units: list[str]) -> Callable[[float, float | None], Any]:
        from flashlight.lib.text import decoder as flashlight

        lm = flashlight.ZeroLM()
        if self.lm is not None:
            space = next((symbol for symbol in SPACES if symbol in units), " ")
            lm = self._language_model([space if label == " " else label for label in self.alphabet.labels])

        def weighted(lm_weight: float, _: float | None) -> Any:
            options = flashlight.LexiconFreeDecoderOptions(
                self.beam_size,
                self.alphabet.blank + 1,
                _THRESHOLD,
                lm_weight * math.log(10),
                0.0,
                True,
                flashlight.CriterionType.CTC,
            )
            # it begins as if its "silence" had been heard: that is the blank
            return flashlight.LexiconFreeDecoder(options, lm, self.alphabet.blank, self.alphabet.blank, [])

        return weighted

    def _language_model(self, units: list[str]) -> Any:
        from flashlight.lib.text.decoder.kenlm import KenLM
        from flashlight.lib.text.dictionary import Dictionary

        try:
            return KenLM(str(self.lm), Dictionary([*units, "<unk>"]))
        except RuntimeError as error:
            reason = (str(error).splitlines() or ["not readable"])[-1]  # those before name lines of KenLM's source
            raise DataError(f"language model {self.lm} cannot be read: {reason}") from None


def _check_weights(lm_weight: float, word_bonus: float | None) -> None:
    if not 0 <= lm_weight < math.inf:
        raise ConfigError("--lm-weight", f"must be a number from 0, not {lm_weight}")
    if word_bonus is not None and not math.isfinite(word_bonus):
        raise ConfigError("--word-bonus", f"must be a number, not {word_bonus}")
