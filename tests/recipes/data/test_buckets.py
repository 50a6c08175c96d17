"""Steps of utterances that are about equally long: little padding, and still the same however they are split."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.common.data.sampler import GlobalBatchSampler

# s, of FSDD's connected digits (data=fsdd): every twentieth part of its 2000 utterances is shorter than these
QUANTILES = [
    1.16, 1.59, 1.76, 1.96, 2.11, 2.25, 2.39, 2.53, 2.66, 2.78, 2.92, 3.09, 3.21, 3.36, 3.5, 3.66, 3.83, 4.06, 4.38,
    4.79, 6.12,
]  # fmt: skip
DURATIONS = np.interp(np.random.default_rng(0).random(2000), np.linspace(0, 1, 21), QUANTILES)
SOME = DURATIONS[:210]


def steps(batch_size: int, world_size: int = 1, accumulate: int = 1, epoch: int = 0, durations=SOME, **kwargs):
    """Utterances of every step, sorted."""
    ranks = []
    for rank in range(world_size):
        sampler = GlobalBatchSampler(
            durations, batch_size, world_size=world_size, rank=rank, accumulate=accumulate, bucket_steps=3, **kwargs
        )
        sampler.set_epoch(epoch)
        ranks.append(list(sampler))
    micro_batches = len(ranks[0])
    return [
        sorted(i for rank in ranks for batch in rank[at : at + accumulate] for i in batch)
        for at in range(0, micro_batches, accumulate)
    ]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_at_most_a_tenth_is_padding(seed):
    assert GlobalBatchSampler(DURATIONS, 32, seed=seed).padding() > 0.4
    assert GlobalBatchSampler(DURATIONS, 32, seed=seed, bucket_steps=10).padding() < 0.1


def test_at_most_a_tenth_is_padding_on_real_speech(shared_data):
    lines = (shared_data / "connected_digits" / "train.json").read_text().splitlines()
    durations = [json.loads(line)["duration"] for line in lines]
    assert GlobalBatchSampler(durations, 32, bucket_steps=10).padding() < 0.1


def test_padding_is_that_of_the_batches_of_all_ranks():
    sampler = GlobalBatchSampler(SOME, 4, world_size=2, accumulate=3, bucket_steps=2, seed=1)
    ranks = [GlobalBatchSampler(SOME, 4, world_size=2, rank=r, accumulate=3, bucket_steps=2, seed=1) for r in (0, 1)]
    batches = [SOME[batch] for rank in ranks for batch in rank]
    heard, padded = sum(b.sum() for b in batches), sum(b.max() * len(b) for b in batches)
    assert sampler.padding() == pytest.approx(1 - heard / padded)


def test_utterances_are_sorted_as_they_are_heard_in_the_epoch():
    """Speed perturbation makes other utterances neighbours."""

    def lengths(epoch: int, entries: np.ndarray) -> np.ndarray:
        assert epoch == 2
        return DURATIONS[entries] / np.array([0.9, 1.0, 1.1])[entries % 3]

    sampler = GlobalBatchSampler(DURATIONS, 32, bucket_steps=10, lengths=lengths)
    sampler.set_epoch(2)
    assert sampler.padding() < 0.1
    heard = [lengths(2, np.array(batch)) for batch in sampler]
    assert sampler.padding() == pytest.approx(1 - np.sum(heard) / np.sum([32 * max(batch) for batch in heard]))


@pytest.mark.parametrize(
    ("batch_size", "world_size", "accumulate"), [(16, 1, 1), (8, 2, 1), (8, 1, 2), (4, 2, 2), (2, 8, 1), (1, 2, 8)]
)
@pytest.mark.parametrize("lengths", [None, lambda epoch, entries: SOME[entries] / (1 + entries % 3)])
def test_a_step_sees_the_same_utterances_however_they_are_split(batch_size, world_size, accumulate, lengths):
    options = {"seed": 5, "epoch": 3, "lengths": lengths}
    assert steps(batch_size, world_size, accumulate, **options) == steps(16, **options)


@settings(max_examples=50)
@given(n=st.integers(6, 80), batch_size=st.integers(1, 3), world_size=st.integers(1, 2), pool=st.integers(1, 20))
def test_no_utterance_twice_and_only_the_remainder_missing(n, batch_size, world_size, pool):
    ranks = [
        list(GlobalBatchSampler(SOME[:n], batch_size, world_size=world_size, rank=rank, bucket_steps=pool))
        for rank in range(world_size)
    ]
    seen = [i for rank in ranks for batch in rank for i in batch]
    assert len(seen) == len(set(seen)) == n - n % (batch_size * world_size)


def test_over_the_epochs_nobody_is_always_left_out_nor_in_the_same_company():
    epochs = [steps(16, epoch=epoch) for epoch in range(12)]
    missing = [set(range(210)) - {i for step in epoch for i in step} for epoch in epochs]
    assert {len(m) for m in missing} == {210 % 16}
    assert not set.intersection(*missing)
    first = [next(step for step in epoch if 7 in step) for epoch in epochs if 7 not in missing]
    assert len({str(step) for step in first}) == len(first)


def test_the_order_of_the_steps_is_drawn():
    means = [np.mean(SOME[step]) for step in steps(8)]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.5
    longest = [int(np.argmax([np.mean(SOME[step]) for step in steps(8, epoch=epoch)])) for epoch in range(8)]
    assert len(set(longest)) > 3


def test_a_pool_is_at_most_a_quarter_of_an_epoch():
    """Sorting all of a small set would make the same batches in every epoch."""
    few = {"durations": SOME[:48], "batch_size": 16}
    assert list(GlobalBatchSampler(**few, bucket_steps=8)) == list(GlobalBatchSampler(**few, bucket_steps=1))
    many = {"durations": SOME, "batch_size": 16}
    assert list(GlobalBatchSampler(**many, bucket_steps=99)) == list(GlobalBatchSampler(**many, bucket_steps=3))
    assert list(GlobalBatchSampler(**many, bucket_steps=2)) != list(GlobalBatchSampler(**many, bucket_steps=3))


def test_without_shuffling_nothing_is_sorted_across_steps():
    options = {"batch_size": 16, "shuffle": False}
    assert list(GlobalBatchSampler(SOME, **options, bucket_steps=3)) == list(GlobalBatchSampler(SOME, **options))


@pytest.mark.parametrize("delivered", [0, 1, 5, 12, 25, 26])
def test_iteration_goes_on_where_it_was_saved(delivered):
    def make(**changes):
        options = {"world_size": 2, "accumulate": 2, "seed": 3, "bucket_steps": 3, **changes}
        return GlobalBatchSampler(SOME, 4, **options)

    whole = make()
    whole.set_epoch(4)
    expected = list(whole)
    whole.delivered = delivered
    resumed = make()
    resumed.load_state_dict(whole.state_dict())
    assert list(resumed) == expected[delivered:]
    if 0 < delivered < 26:
        with pytest.raises(ConfigError, match="other durations, weights or speeds than when the checkpoint was saved"):
            make(lengths=lambda epoch, entries: SOME[entries] * 1.1).load_state_dict(whole.state_dict())


@pytest.mark.parametrize("known", [True, False])
def test_an_epoch_ends_with_the_buckets_that_it_began_with(known):
    """Those of a checkpoint of before there were any are 1."""
    whole = GlobalBatchSampler(SOME, 4, seed=3, bucket_steps=3 if known else 1)
    whole.set_epoch(4)
    expected = list(whole)
    whole.delivered = 20
    state = whole.state_dict()
    if not known:
        del state["bucket_steps"], state["order"], state["batch_seconds"]
    for _ in range(2):
        resumed = GlobalBatchSampler(SOME, 4, seed=3, bucket_steps=8)
        resumed.load_state_dict(state)
        assert list(resumed) == expected[20:]
        state = resumed.state_dict()
    resumed.set_epoch(5)
    fresh = GlobalBatchSampler(SOME, 4, seed=3, bucket_steps=8)
    fresh.set_epoch(5)
    assert list(resumed) == list(fresh)
    assert resumed.state_dict() == fresh.state_dict()


def test_bucket_steps_out_of_range():
    with pytest.raises(ValueError, match="bucket_steps must be at least 1, not 0"):
        GlobalBatchSampler(SOME, 4, bucket_steps=0)
