"""What the errors on a set are made of, and how sure their rate is."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.data.manifest import Utterance, parse_row, read_rows
from lightning_novograd.recipes.asr.text.alignment import Edit, EditCounts, align, count_edits

SAMPLES = 2000  # of the bootstrap
CONFIDENCE = 0.95
SPEAKERS = 5  # with fewer there is not enough to draw from
SEED = 20


@dataclass(frozen=True)
class Scored:
    """An utterance with what was heard, and its errors."""

    utterance: Utterance
    hypothesis: str
    speaker: str | None
    words: EditCounts
    chars: EditCounts

    @property
    def num_words(self) -> int:
        """Of the reference."""
        return len(self.utterance.text.split())

    @property
    def num_chars(self) -> int:
        """Of the reference, spaces counted."""
        return len(self.utterance.text)

    @property
    def alignment(self) -> list[Edit]:
        """Word by word."""
        return align(self.hypothesis.split(), self.utterance.text.split())


class Part(NamedTuple):
    """The errors of some utterances.

    Args:
        name: what they have in common.
        utterances: how many there are.
        words: of the references.
        errors: in words.
    """

    name: str
    utterances: int
    words: int
    errors: int

    @property
    def wer(self) -> float | None:
        """Word error rate, as a fraction; None without words."""
        return self.errors / self.words if self.words else None


def score(utterances: Sequence[Utterance], hypotheses: Sequence[str]) -> list[Scored]:
    """Count the errors of each utterance."""
    speakers = read_speakers(utterances)
    return [
        Scored(u, heard, speaker, count_edits(heard.split(), u.text.split()), count_edits(heard, u.text))
        for u, heard, speaker in zip(utterances, hypotheses, speakers, strict=True)
    ]


def read_speakers(utterances: Sequence[Utterance]) -> list[str | None]:
    """The `speaker` of each line of the manifests, a text or a number; None where there is none."""
    rows = {}
    for manifest in {u.manifest for u in utterances}:
        try:
            rows[manifest] = dict(read_rows(manifest))
        except DataError:  # it was there when the utterances were read
            rows[manifest] = {}
    return [_speaker(rows[u.manifest][u.line]) if rows[u.manifest] else None for u in utterances]


def _speaker(row: str) -> str | None:
    speaker = parse_row(row).get("speaker")
    return str(speaker) if isinstance(speaker, str | int) and not isinstance(speaker, bool) else None


def interval(scored: Sequence[Scored]) -> tuple[float, float] | None:
    """The 95 % bootstrap interval of the word error rate: percentiles of its values over sets drawn from this one.

    Drawn are speakers, where at least SPEAKERS are known, since errors of one voice come together; else utterances.

    Returns:
        Two fractions; None without words.

    Source: Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004.
    """
    units: dict[object, tuple[int, int]] = {}
    by_speaker = drawn_by_speaker(scored)
    for index, one in enumerate(scored):
        key = one.speaker if by_speaker else index
        errors, words = units.get(key, (0, 0))
        units[key] = (errors + one.words.errors, words + one.num_words)
    errors_U, words_U = np.array(list(units.values()), dtype=np.float64).reshape(-1, 2).T
    if not words_U.sum():
        return None
    rng = np.random.default_rng(SEED)
    rates: list[float] = []
    while len(rates) < SAMPLES:
        drawn = rng.integers(len(words_U), size=len(words_U))
        if words := words_U[drawn].sum():
            rates.append(errors_U[drawn].sum() / words)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(rates, [tail, 100 - tail]).tolist()
    return low, high


def drawn_by_speaker(scored: Iterable[Scored]) -> bool:
    """Whether the bootstrap draws speakers: every utterance has one, and there are enough of them."""
    speakers = {one.speaker for one in scored}
    return None not in speakers and len(speakers) >= SPEAKERS


def by_speaker(scored: Iterable[Scored]) -> list[Part]:
    """Errors of each speaker, worst first; empty where the manifest knows none."""
    groups: dict[str, list[Scored]] = defaultdict(list)
    for one in scored:
        if one.speaker is not None:
            groups[one.speaker].append(one)
    parts = [_part(name, members) for name, members in groups.items()]
    return sorted(parts, key=lambda part: (-(part.wer or 0.0), part.name))


def by_length(scored: Sequence[Scored], bins: int = 6) -> list[Part]:
    """Errors of utterances by their length: about equally many in each bin, shortest first."""
    order = sorted(scored, key=lambda one: one.utterance.duration)
    parts = []
    for indices in np.array_split(np.arange(len(order)), min(bins, len(order))):
        members = [order[i] for i in indices]
        shortest, longest = members[0].utterance.duration, members[-1].utterance.duration
        parts.append(_part(f"{shortest:.1f} to {longest:.1f} s", members))
    return parts


def _part(name: str, members: Sequence[Scored]) -> Part:
    words, errors = sum(one.num_words for one in members), sum(one.words.errors for one in members)
    return Part(name, len(members), words, errors)


def confusions(pairs: Iterable[tuple[Sequence[str], Sequence[str]]], top: int) -> dict[str, list[tuple[Edit, int]]]:
    """The most frequent errors of each kind.

    Args:
        pairs: hypotheses with their references, as words or characters.
        top: how many of each kind.

    Returns:
        `substitute`, `delete` and `insert`: edits with how often they are made.
    """
    counts = Counter(edit for pair in pairs for edit in align(*pair) if edit.kind != "equal")
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kinds = ("substitute", "delete", "insert")
    return {kind: [(edit, n) for edit, n in ranked if edit.kind == kind][:top] for kind in kinds}


def worst(scored: Iterable[Scored], count: int) -> list[Scored]:
    """The utterances with most word errors, of equal ones the shorter text first; those without errors are left out."""
    wrong = [one for one in scored if one.chars.errors]
    return sorted(wrong, key=lambda one: (-one.words.errors, one.num_words, -one.chars.errors, one.utterance.line))[
        :count
    ]
