"""Words, and when they are said."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightning_novograd.recipes.asr.text.alphabet import Alphabet
from lightning_novograd.recipes.asr.text.decode import CTCPath, runs


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a recording.

    Args:
        text: the word.
        start: s from the beginning of the recording: the first frame of its first character.
        end: s: the end of the last frame of its last character. A CTC model tends to be early with it: a character may
            be a single frame, however long it is held.
        confidence: in [0, 1], the geometric mean over its characters of the highest probability that each has in its
            frames.
    """

    text: str
    start: float
    end: float
    confidence: float


def separator(alphabet: Alphabet) -> str:
    """What stands between the words of a text: a space, or nothing where the alphabet has none."""
    return " " if " " in alphabet.labels else ""


def words_of(path: CTCPath, alphabet: Alphabet, frame_seconds: float, begin: float = 0.0) -> list[Word]:
    """The words of a path, between its spaces; every character is one where the alphabet has no space.

    Args:
        path: of one utterance.
        alphabet: the characters of the classes.
        frame_seconds: s from one frame to the next.
        begin: s, where the utterance begins in its recording.

    Example:
        >>> path = CTCPath(np.array([1, 3, 0, 3, 2, 2]), np.zeros(6))
        >>> [(word.text, word.start, word.end) for word in words_of(path, Alphabet(" ab"), 0.02)]
        [('a', 0.0, 0.02), ('b', 0.08, 0.12)]
    """
    words: list[list[np.ndarray]] = [[]]
    for run in runs(path.ids_T, alphabet.blank):
        if separator(alphabet) == "" or alphabet.labels[run[0]] == " ":
            words.append([])
        if alphabet.labels[run[0]] != " ":
            words[-1].append(run)
    return [_word(word, path, alphabet, frame_seconds, begin) for word in words if word]


def _word(
    characters: Sequence[np.ndarray], path: CTCPath, alphabet: Alphabet, frame_seconds: float, begin: float
) -> Word:
    best = [path.log_probs_T[start:end].max() for _, start, end in characters]
    return Word(
        alphabet.decode(int(character) for character, _, _ in characters),
        round(begin + frame_seconds * int(characters[0][1]), 3),
        round(begin + frame_seconds * int(characters[-1][2]), 3),
        round(float(np.exp(np.mean(best))), 4),
    )
