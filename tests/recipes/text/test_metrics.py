"""Error rates: edit distance by its definition, sums before the division."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.utilities import dim_zero_sum

from lightning_novograd.recipes.asr.text.metrics import ErrorRate


def edit_distance(a: Sequence, b: Sequence) -> int:
    """Wagner and Fischer's table."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        corner, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (x != y))
    return row[-1]


def rate(unit: str, *batches: tuple[list[str], list[str]]) -> float:
    metric = ErrorRate(unit)
    for hypotheses, references in batches:
        metric.update(hypotheses, references)
    return metric.compute().item()


@pytest.mark.parametrize(
    ("unit", "hypothesis", "reference", "expected"),
    [
        pytest.param("word", "one two three", "one two three", 0, id="right"),
        pytest.param("word", "one too three", "one two three", 1 / 3, id="substitution"),
        pytest.param("word", "one three", "one two three", 1 / 3, id="deletion"),
        pytest.param("word", "one one two three", "one two three", 1 / 3, id="insertion"),
        pytest.param("word", "", "one two", 1, id="nothing heard"),
        pytest.param("word", "a b c d", "x", 4, id="more than one"),
        pytest.param("word", "  one   two ", "one two", 0, id="spaces between words do not count"),
        pytest.param("char", "one to", "one two", 1 / 7, id="characters, with the space"),
        pytest.param("char", "onetwo", "one two", 1 / 7, id="a missing space"),
    ],
)
def test_rate(unit, hypothesis, reference, expected):
    assert rate(unit, ([hypothesis], [reference])) == pytest.approx(expected)


@given(st.lists(st.tuples(st.text("ab ", max_size=9), st.text("ab ", max_size=9)), min_size=1, max_size=5))
def test_edit_distance_by_its_definition(pairs):
    metric = ErrorRate("word")
    metric.update(*zip(*pairs, strict=True))
    assert metric.errors == sum(edit_distance(h.split(), r.split()) for h, r in pairs)
    assert metric.units == sum(len(r.split()) for _, r in pairs)


def test_batches_are_summed_not_averaged():
    batches = (["a"], ["b"]), (["a b c d", "a"], ["a b c d", "a"])
    assert rate("word", *batches) == pytest.approx(1 / 6)


def test_ranks_are_summed():
    one, other = ErrorRate(), ErrorRate()
    one.update(["a"], ["b"])
    other.update(["a b c"], ["a b c"])
    one.merge_state(other)
    assert one.compute().item() == 1 / 4


def test_what_torchmetrics_asks():
    metric = ErrorRate()
    assert metric.unit == "word"
    assert (metric.is_differentiable, metric.higher_is_better, metric.full_state_update) == (False, False, False)
    assert (metric.errors.dtype, metric.units.dtype) == (torch.int64, torch.int64)
    assert metric.metric_state.keys() == {"errors", "units"}
    assert set(metric._reductions.values()) == {dim_zero_sum}
    assert not ErrorRate("char", dist_sync_on_step=False, compute_on_cpu=True).dist_sync_on_step
    assert ErrorRate("char", compute_on_cpu=True).compute_on_cpu
    with pytest.raises(TypeError, match="lists of texts"):
        metric.update(["a"], "a")


def test_reset_forgets():
    metric = ErrorRate()
    metric.update(["a"], ["b"])
    metric.reset()
    metric.update(["b"], ["b"])
    assert metric.compute() == 0


def test_empty_references():
    assert rate("word", (["a b", "c"], ["", "c"])) == 2, "insertions count, against the words that there are"
    assert rate("word", (["a"], [""])) == math.inf
    assert math.isnan(rate("word", ([""], [""])))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(lambda: ErrorRate("wrd"), ValueError, "must be 'word' or 'char', not 'wrd'", id="unit"),
        pytest.param(lambda: ErrorRate().update(["a"], ["a", "b"]), ValueError, "zip", id="numbers differ"),
        pytest.param(lambda: ErrorRate().update("a", ["a"]), TypeError, "lists of texts", id="one text"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
