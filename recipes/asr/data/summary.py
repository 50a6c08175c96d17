"""What a set of utterances is made of, in a few lines of text."""

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np

from lightning_novograd.recipes.asr.data.manifest import Utterance
from lightning_novograd.recipes.asr.text.alphabet import Alphabet

BINS, WIDTH = 10, 40  # of the histogram: its lines, and characters of the longest bar


def summarize(utterances: Sequence[Utterance], alphabet: Alphabet) -> str:
    """Lengths and letters of a set.

    Args:
        utterances: at least one.
        alphabet: of the model; letters of it that no text has are named.

    Returns:
        Lines of text.
    """
    durations = np.array([u.duration for u in utterances])
    letters: Counter[str] = Counter()
    letters.update(itertools.chain.from_iterable(u.text for u in utterances))
    used = " ".join(f"{_shown(letter)} {count}" for letter, count in letters.most_common())
    unused = [_shown(letter) for letter in alphabet.labels if letter not in letters]
    low, middle, high = durations.min(), np.median(durations), durations.max()
    return "\n".join(
        [
            f"durations from {low:.2f} to {high:.2f} s, half of them below {middle:.2f} s",
            *_histogram(durations),
            f"letters: {used}",
            f"never used: {' '.join(unused) or 'none'}",
        ]
    )


def _histogram(durations: np.ndarray) -> list[str]:
    counts, edges = np.histogram(durations, BINS)
    bars = (WIDTH * counts / counts.max()).round().astype(int)
    return [
        f"{low:8.2f} to {high:6.2f} s {'#' * bar:{WIDTH}} {count}"
        for low, high, bar, count in zip(edges[:-1], edges[1:], bars, counts, strict=True)
    ]


def _shown(letter: str) -> str:
    return "space" if letter == " " else letter
