"""Long recordings in pieces of an utterance's length."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lightning_novograd.recipes.asr.recognition.words import Word

SHORTEST = 5.0  # s, that the longest piece may be limited to: words and overlaps must fit in
LONGEST = 30.0  # s; as long as utterances get in the corpora of the field
MARGIN = 1.0  # s that two pieces both have on either side of a cut that is not in silence
QUIET = 0.3  # s, over which the power is averaged
SILENT = 0.01  # of the power of loud passages: 20 dB below them nobody speaks
_LOUD = 90  # percentile of the power
_HOP = 0.01  # s
_ZERO = 1e-10  # power, 100 dB below full scale; rounding errors of sums are less


class Segment(NamedTuple):
    """A piece of a recording.

    Args:
        wave: float32 samples.
        start: s, where it begins in the recording.
        joint: s, where it takes over from the piece before, of which it repeats the last 2 MARGIN; None where nothing
            is repeated: it is the first one, or the cut is in silence.
    """

    wave: np.ndarray
    start: float
    joint: float | None = None


def segments(blocks: Iterable[np.ndarray], sample_rate: int, longest: float = LONGEST) -> Iterator[Segment]:
    """Cut a stream of samples at the quietest places, so that no piece is longer than `longest`.

    A cut is where the mean power over QUIET is least, between half of `longest` and `longest` - MARGIN after the
    beginning of the piece. Where it is not silent even there, the two pieces overlap by 2 MARGIN and are to be joined
    by :func:`join`. Memory holds one piece and a block.

    Args:
        blocks: float32 samples, in any portions.
        sample_rate: Hz.
        longest: s, at least 5.

    Example:
        >>> speech, pause = np.ones(20 * 100, np.float32), np.zeros(100, np.float32)
        >>> [(len(s.wave), s.start, s.joint) for s in segments([speech, pause, speech], 100)]
        [(2050, 0.0, None), (2050, 20.5, None)]
    """
    limit, margin = round(longest * sample_rate), round(MARGIN * sample_rate)
    buffer, start, joint = np.zeros(0, np.float32), 0, None
    for block in itertools.chain(blocks, [None]):
        if block is not None:
            buffer = np.concatenate([buffer, block])
        # no piece ends just before the recording does, which would leave next to nothing for the last one
        while len(buffer) > (limit if block is None else limit + margin):
            cut, silent = quietest(buffer, sample_rate, longest)
            overlap = 0 if silent else margin
            yield Segment(buffer[: cut + overlap].copy(), start / sample_rate, joint)
            joint = None if silent else (start + cut) / sample_rate
            start, buffer = start + cut - overlap, buffer[cut - overlap :]
    if len(buffer):
        yield Segment(buffer, start / sample_rate, joint)


def quietest(wave: np.ndarray, sample_rate: int, longest: float = LONGEST) -> tuple[int, bool]:
    """Where to cut, as a sample, and whether it is silent there.

    Args:
        wave: longer than `longest`.
        sample_rate: Hz.
        longest: s, the longest piece.
    """
    hop = max(1, round(_HOP * sample_rate))
    width = max(1, round(QUIET / _HOP))
    whole = wave[: len(wave) // hop * hop].astype(np.float64)
    sums = np.cumsum(np.pad(np.square(whole).reshape(-1, hop).mean(axis=1), (1, 0)))
    power = (sums[width:] - sums[:-width]) / width
    first, last = round(longest / 2 / _HOP) - width // 2, round((longest - MARGIN) / _HOP) - width // 2
    candidates = power[first:last]
    # the last of equals, pieces as long as possible, and the middle of what is quiet without a break
    equal = np.flatnonzero(candidates <= candidates.min() + _ZERO)
    run = np.split(equal, np.flatnonzero(np.diff(equal) > 1) + 1)[-1]
    best = first + int(run[len(run) // 2])
    silent = power[best] <= SILENT * np.percentile(power, _LOUD) + _ZERO
    return (best + width // 2) * hop, bool(silent)


def join(parts: Sequence[Sequence[Word]], joints: Sequence[float | None]) -> list[Word]:
    """The words of a recording, from those of its pieces.

    Where two pieces overlap both have heard the words there, at about the same times. One takes over from the other
    between two words: in the gap that both hear which is nearest to the joint. Where they have none in common, it is at
    the joint, and a word belongs to the piece in which its middle lies.

    Args:
        parts: words of each piece, timed from the beginning of the recording.
        joints: of each piece, as a `Segment` has it.
    """
    words: list[Word] = []
    for part, joint in zip(parts, joints, strict=True):
        if joint is not None:
            turn = _common_gap(words, part, joint)
            words = [word for word in words if word.start + word.end < 2 * turn]
            part = [word for word in part if word.start + word.end >= 2 * turn]
        words.extend(part)
    return words


def _common_gap(left: Sequence[Word], right: Sequence[Word], joint: float) -> float:
    """The moment nearest to `joint` that lies in no word of either side."""
    spans = [(w.start, w.end) for w in (*left, *right) if w.end > joint - MARGIN and w.start < joint + MARGIN]
    edges = [joint, *(edge for span in spans for edge in span)]
    free = [
        edge for edge in edges if abs(edge - joint) < MARGIN and not any(start < edge < end for start, end in spans)
    ]
    return min(free, key=lambda edge: abs(edge - joint), default=joint)
