"""What each micro-batch counts in the loss of a step, and the last step of an epoch, which may be shorter."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.common.data.mixture import Mixture
from lightning_novograd.recipes.common.data.sampler import GlobalBatchSampler

RNG = np.random.default_rng(0)
DURATIONS = RNG.gamma(4.0, 0.7, 210).tolist()
COUNTS = RNG.integers(1, 60, 210).tolist()
LOSSES = RNG.gamma(2.0, 50.0, 210)  # of each utterance


def samplers(batch_size: int, world_size: int, accumulate: int, n: int = 210, epoch: int = 0, **options):
    for rank in range(world_size):
        place = {"world_size": world_size, "rank": rank, "accumulate": accumulate}
        sampler = GlobalBatchSampler(DURATIONS[:n], batch_size, **place, **options)
        sampler.set_epoch(epoch)
        yield sampler


def dealt(*geometry, **options):
    """Micro-batches of every step, as step -> rank -> micro-batch."""
    ranks = [list(sampler) for sampler in samplers(*geometry, **options)]
    assert len({len(batches) for batches in ranks}) == 1
    accumulate = geometry[2]
    return [[rank[i : i + accumulate] for rank in ranks] for i in range(0, len(ranks[0]), accumulate)]


def minimized(step, accumulate: int, counts=None) -> float:
    """What Lightning and DDP make of the losses of one step: divided by `accumulate`, and the mean over the ranks."""
    ranks = []
    for batches in step:
        weights = [np.ones(len(batch)) if counts is None else np.asarray(counts)[list(batch)] for batch in batches]
        means = [LOSSES[list(b)].sum() / w.sum() for b, w in zip(batches, weights, strict=True)]
        ranks.append(sum(batch.weight * mean for batch, mean in zip(batches, means, strict=True)) / accumulate)
    return float(np.mean(ranks))


def heard(step) -> list[int]:
    """Utterances that count."""
    return [i for rank in step for batch in rank if batch.weight for i in batch]


GEOMETRIES = [(32, 1, 1), (16, 2, 1), (16, 1, 2), (8, 2, 2), (4, 8, 1), (1, 4, 8), (2, 1, 16), (2, 2, 8)]


@pytest.mark.parametrize("last", ["drop", "keep"])
@pytest.mark.parametrize("reduction", ["mean_batch", "mean_volume", "sum"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_ranks_and_micro_batches_make_the_loss_of_the_whole_batch(geometry, reduction, last):
    counts = COUNTS if reduction == "mean_volume" else None
    for step in dealt(*geometry, last=last, counts=counts, sums=reduction == "sum"):
        mine = heard(step)
        total = {"mean_batch": len(mine), "mean_volume": np.asarray(COUNTS)[mine].sum(), "sum": 1}[reduction]
        assert minimized(step, geometry[2], counts) == pytest.approx(LOSSES[mine].sum() / total, rel=1e-9)


def test_batches_by_seconds_count_characters_too():
    for step in dealt(1, 2, 3, batch_seconds=20.0, counts=COUNTS):
        mine = heard(step)
        expected = LOSSES[mine].sum() / np.asarray(COUNTS)[mine].sum()
        assert minimized(step, 3, COUNTS) == pytest.approx(expected, rel=1e-9)


def test_utterances_that_are_heard_twice_count_twice():
    mixture = Mixture([200, 10], [1.0, 2.0])
    for step in dealt(8, 2, 2, mixture=mixture, counts=COUNTS, last="keep"):
        losses, counts = np.tile(LOSSES, 2), np.tile(COUNTS, 2)
        ranks = [sum(b.weight * losses[list(b)].sum() / counts[list(b)].sum() for b in batches) / 2 for batches in step]
        mine = heard(step)
        assert np.mean(ranks) == pytest.approx(losses[mine].sum() / counts[mine].sum(), rel=1e-9)


@settings(max_examples=40)
@given(
    n=st.integers(1, 80), batch_size=st.integers(1, 5), world_size=st.integers(1, 4), accumulate=st.integers(1, 3),
    epoch=st.integers(0, 3),
)  # fmt: skip
def test_with_keep_nothing_is_missing_and_ranks_have_as_many_batches(n, batch_size, world_size, accumulate, epoch):
    total = batch_size * world_size * accumulate
    if n < total:
        with pytest.raises(DataError, match="fewer than one global batch"):
            dealt(batch_size, world_size, accumulate, n=n, last="keep")
        return
    plan = dealt(batch_size, world_size, accumulate, n=n, epoch=epoch, last="keep")
    assert sorted(i for step in plan for i in heard(step)) == list(range(n))
    assert [len(heard(step)) for step in plan] == [total] * (n // total) + [n % total] * (n % total > 0)
    sizes = [len(batch) for step in plan for rank in step for batch in rank]
    assert 1 <= min(sizes) <= max(sizes) <= batch_size
    for step in plan:
        assert len({len(rank) for rank in step}) == 1
    assert len(next(samplers(batch_size, world_size, accumulate, n=n, last="keep"))) == sum(len(s[0]) for s in plan)


def test_the_last_step_takes_no_more_micro_batches_than_it_needs():
    whole = dealt(8, 2, 4, last="keep")  # 210 = 3 x 64 + 18
    assert [len(rank) for rank in whole[-1]] == [2, 2]
    assert sorted(len(batch) for rank in whole[-1] for batch in rank) == [4, 4, 5, 5]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_last_step_does_not_depend_on_the_split_either(geometry):
    def steps(*geometry):
        return [sorted(heard(step)) for step in dealt(*geometry, last="keep", seed=5, epoch=3)]

    assert steps(*geometry) == steps(32, 1, 1)


def test_what_is_kept_comes_after_the_steps_that_there_are_without_it():
    dropped, kept = (dealt(8, 2, 2, last=last, seed=3) for last in ("drop", "keep"))
    assert kept[: len(dropped)] == dropped
    assert len(kept) == len(dropped) + 1


def test_a_rank_without_utterances_hears_one_again_that_does_not_count():
    *_, step = dealt(1, 8, 1, n=11, last="keep")
    weights = sorted(batch.weight for rank in step for batch in rank)
    assert weights == [0.0] * 5 + [pytest.approx(8 / 3)] * 3
    again = {i for rank in step for batch in rank for i in batch if not batch.weight}
    assert len(again) == 1
    assert again <= set(heard(step))


def test_where_batches_are_full_there_is_no_shorter_one():
    assert dealt(7, 1, 2, last="keep") == dealt(7, 1, 2)


@pytest.mark.parametrize("delivered", range(0, 16))
def test_iteration_goes_on_where_it_was_saved(delivered):
    def make():
        *_, sampler = samplers(8, 2, 4, seed=3, epoch=4, last="keep")
        return sampler

    expected = list(make())
    assert len(expected) == len(make()) == 14
    saved = make()
    saved.delivered = min(delivered, 14)
    resumed = make()
    resumed.load_state_dict(saved.state_dict())
    resumed.set_epoch(4)
    rest = list(resumed)
    assert rest == expected[delivered:]
    assert [batch.weight for batch in rest] == [batch.weight for batch in expected[delivered:]]


def test_the_choice_changes_between_epochs_alone():
    [saved], [changed] = samplers(8, 1, 2, last="keep"), samplers(8, 1, 2)
    saved.delivered = 5
    with pytest.raises(ConfigError, match=r"batches was 27 .* and is 26 now"):
        changed.load_state_dict(saved.state_dict())
    saved.delivered = len(saved)
    changed.load_state_dict(saved.state_dict())
    assert list(changed) == []


def test_the_log_says_how_short_the_last_step_is(caplog):
    with caplog.at_level(logging.INFO):
        list(samplers(16, 2, 1, last="keep"))
    assert caplog.messages == ["the last step of each epoch has 18 utterances, the others have 32"]


def test_padding_counts_the_last_step():
    [sampler] = samplers(32, 1, 1, last="keep")
    batches = list(sampler)
    spoken = sum(DURATIONS)
    padded = sum(max(DURATIONS[i] for i in batch) * len(batch) for batch in batches)
    assert sampler.padding() == pytest.approx(1 - spoken / padded)
    assert 0 <= next(samplers(1, 8, 1, n=11, last="keep")).padding() < 1e-9


@pytest.mark.parametrize(
    ("options", "message"),
    [({"last": "kepp"}, "last must be one of drop, keep, not 'kepp'"),
     ({"last": "keep", "batch_seconds": 60.0}, "batch_seconds have no remainder")],
)  # fmt: skip
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        GlobalBatchSampler(DURATIONS, 8, **options)
