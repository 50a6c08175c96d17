"""What errors are made of, and the interval of their rate."""

from pathlib import Path

import numpy as np
import pytest
import speech_files

from lightning_novograd.recipes.asr.data.manifest import Utterance
from lightning_novograd.recipes.asr.recognition import statistics
from lightning_novograd.recipes.asr.recognition.statistics import (
    Scored,
    by_length,
    by_speaker,
    confusions,
    drawn_by_speaker,
    interval,
    read_speakers,
    score,
    worst,
)
from lightning_novograd.recipes.asr.text.alignment import Edit, EditCounts, align, count_edits
from lightning_novograd.recipes.asr.text.metrics import ErrorRate

PAIRS = [
    ("", ""),
    ("a", ""),
    ("", "a b"),
    ("one too four", "one two three four"),
    ("b c d", "a b c"),
    ("x y z w", "a"),
    ("a a b", "a b b"),
]


@pytest.mark.parametrize(("hypothesis", "reference"), PAIRS)
@pytest.mark.parametrize("split", [str.split, list])
def test_an_alignment_spells_both_sides_with_the_fewest_errors(hypothesis, reference, split):
    heard, said = split(hypothesis), split(reference)
    edits = align(heard, said)
    assert [e.reference for e in edits if e.kind != "insert"] == said
    assert [e.hypothesis for e in edits if e.kind != "delete"] == heard
    assert all((e.reference == e.hypothesis) == (e.kind == "equal") for e in edits)
    kinds = [e.kind for e in edits]
    counted = EditCounts(kinds.count("insert"), kinds.count("delete"), kinds.count("substitute"))
    assert count_edits(heard, said) == counted
    metric = ErrorRate("word" if split is str.split else "char")
    metric.update([hypothesis], [reference])
    assert counted.errors == int(metric.errors)


def scored(errors: list[int], words: int = 10, speakers: list[str | None] | None = None) -> list[Scored]:
    return [
        Scored(
            Utterance(Path("a.wav"), 1.0 + i, "w " * words, i + 1, Path("m.json")),
            "",
            speakers[i] if speakers else None,
            EditCounts(0, 0, n),
            EditCounts(n, 0, 0),
        )
        for i, n in enumerate(errors)
    ]


def test_the_interval_is_as_wide_as_the_errors_vary():
    rng = np.random.default_rng(0)
    errors = rng.binomial(10, 0.1, size=400).tolist()
    low, high = interval(scored(errors))
    rate = sum(errors) / 4000
    deviation = np.std(errors) / 10 / np.sqrt(400)
    assert (low, high) == (
        pytest.approx(rate - 1.96 * deviation, abs=0.002),
        pytest.approx(rate + 1.96 * deviation, abs=0.002),
    )
    assert interval(scored(errors)) == (low, high)  # drawn alike each time
    assert interval(scored([1] * 50)) == (0.1, 0.1)
    assert interval(scored([0, 0])) == (0.0, 0.0)
    assert interval(scored([3, 4], words=0)) is None
    assert interval([]) is None


def test_speakers_are_drawn_where_they_are_known():
    # within a speaker all errors come together, so 8 speakers say less than 400 utterances
    errors = [3 * (i % 8 == 0) for i in range(400)]
    speakers = [str(i % 8) for i in range(400)]
    alone, together = interval(scored(errors)), interval(scored(errors, speakers=speakers))
    assert together[1] - together[0] > 3 * (alone[1] - alone[0])
    assert drawn_by_speaker(scored(errors, speakers=speakers))
    assert not drawn_by_speaker(scored(errors, speakers=[None, *speakers[1:]]))
    few = [str(i % (statistics.SPEAKERS - 1)) for i in range(400)]
    assert interval(scored(errors, speakers=few)) == alone


def test_a_set_with_texts_without_words_has_an_interval():
    half = [*scored([1] * 4), *scored([0], words=0)]
    assert interval(half) == (pytest.approx(0.1), pytest.approx(0.1))


def test_by_length_and_speaker():
    ones = scored([1, 2, 3, 4, 5, 6, 7], speakers=["b", "a", "b", "a", "b", "a", None])
    parts = by_length(ones[::-1], bins=3)
    assert parts == [("1.0 to 3.0 s", 3, 30, 6), ("4.0 to 5.0 s", 2, 20, 9), ("6.0 to 7.0 s", 2, 20, 13)]
    assert parts[0].wer == 0.2
    assert len(by_length(ones[:2])) == 2
    assert by_speaker(ones) == [("a", 3, 30, 12), ("b", 3, 30, 9)]
    assert by_speaker(scored([1, 2])) == []
    assert by_speaker(scored([1], words=0, speakers=["a"]))[0].wer is None


def test_confusions_are_ranked_by_kind():
    pairs = [("a x c", "a b c"), ("a x", "a b"), ("c", "c d"), ("y c z", "c")]
    found = confusions(((heard.split(), said.split()) for heard, said in pairs), top=5)
    assert found == {
        "substitute": [(Edit("substitute", "b", "x"), 2)],
        "delete": [(Edit("delete", "d", ""), 1)],
        "insert": [(Edit("insert", "", "y"), 1), (Edit("insert", "", "z"), 1)],
    }
    assert confusions([("y c z", "c")], top=1)["insert"] == [(Edit("insert", "", " "), 2)]


def test_the_worst_have_most_errors():
    ones = scored([1, 5, 0, 5, 2])
    assert [one.utterance.line for one in worst(ones, 3)] == [2, 4, 5]
    assert [one.utterance.line for one in worst(ones, 9)] == [2, 4, 5, 1]


def test_speakers_come_from_the_manifest(tmp_path):
    entries = [{"speaker": "ann"}, {"speaker": 7}, {}, {"speaker": True}, {"speaker": ["x"]}, {"speaker": None}]
    manifest = speech_files.write_manifest(tmp_path / "m.json", entries)
    utterances = [Utterance(Path("a"), 1.0, "a b", line, manifest) for line in (2, 1, 3, 4, 5, 6)]
    assert read_speakers(utterances) == ["7", "ann", None, None, None, None]
    [first, *_] = score(utterances, ["a"] * 6)
    assert (first.speaker, first.words, first.chars) == ("7", EditCounts(0, 1, 0), EditCounts(0, 2, 0))
    assert (first.num_words, first.num_chars) == (2, 3)
