"""Batches: what a step sees does not depend on how many ranks share it; nothing is lost or repeated."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.common.data.sampler import EvalBatchSampler, GlobalBatchSampler

DURATIONS = np.random.default_rng(0).gamma(4.0, 0.7, 210).tolist()


def steps(batch_size: int, world_size: int = 1, accumulate: int = 1, epoch: int = 0, durations=DURATIONS, **kwargs):
    """Micro-batches of every step, as step -> rank -> micro-batch -> indices."""
    ranks = []
    for rank in range(world_size):
        sampler = GlobalBatchSampler(
            durations, batch_size, world_size=world_size, rank=rank, accumulate=accumulate, **kwargs
        )
        sampler.set_epoch(epoch)
        ranks.append(list(sampler))
        assert len(ranks[-1]) == len(sampler)
    return [[r[i : i + accumulate] for r in ranks] for i in range(0, len(ranks[0]), accumulate)]


def flat(nested) -> list[int]:
    return np.asarray(nested).reshape(-1).tolist()


@pytest.mark.parametrize(
    ("batch_size", "world_size", "accumulate"),
    [(32, 1, 1), (16, 2, 1), (16, 1, 2), (8, 2, 2), (4, 8, 1), (1, 4, 8), (2, 1, 16)],
)
def test_a_step_sees_the_same_utterances_however_they_are_split(batch_size, world_size, accumulate):
    whole = [sorted(flat(step)) for step in steps(32, seed=5, epoch=3)]
    split = [sorted(flat(step)) for step in steps(batch_size, world_size, accumulate, seed=5, epoch=3)]
    assert split == whole


@settings(max_examples=50)
@given(
    n=st.integers(1, 80), batch_size=st.integers(1, 5), world_size=st.integers(1, 3), accumulate=st.integers(1, 3),
    epoch=st.integers(0, 3),
)  # fmt: skip
def test_no_utterance_twice_and_only_the_remainder_missing(n, batch_size, world_size, accumulate, epoch):
    total = batch_size * world_size * accumulate
    if n < total:
        with pytest.raises(DataError):
            GlobalBatchSampler(DURATIONS[:n], batch_size, world_size=world_size, accumulate=accumulate)
        return
    seen = flat(steps(batch_size, world_size, accumulate, epoch, DURATIONS[:n]))
    assert len(seen) == len(set(seen)) == n - n % total
    assert set(seen) <= set(range(n))


def test_epochs_and_seeds_differ_and_repeat():
    orders = {(seed, epoch): str(steps(32, seed=seed, epoch=epoch)) for seed in (1, 2) for epoch in (0, 1, 2)}
    assert len(set(orders.values())) == 6
    assert orders[2, 1] == str(steps(32, seed=2, epoch=1))


def test_over_the_epochs_nobody_is_always_left_out():
    missing = [set(range(210)) - set(flat(steps(32, epoch=epoch))) for epoch in range(12)]
    assert {len(m) for m in missing} == {210 % 32}
    assert not set.intersection(*missing)


def test_the_log_says_how_many_are_left_out(caplog):
    with caplog.at_level(logging.INFO):
        GlobalBatchSampler(DURATIONS, 32)
        GlobalBatchSampler(DURATIONS, 16, world_size=2, rank=1)
    assert [r.getMessage().split(" and ")[0] for r in caplog.records] == [
        "18 of 210 utterances do not fill a global batch of 32"
    ]


def padded(batches) -> float:
    """Seconds that a model computes for these batches, padding included."""
    return sum(max(DURATIONS[i] for i in batch) * len(batch) for batch in batches)


def test_micro_batches_have_little_padding():
    spoken = sum(DURATIONS[i] for i in flat(steps(4, accumulate=8)))
    sorted_ = sum(padded(rank) for step in steps(4, accumulate=8) for rank in step)
    shuffled = sum(
        padded(np.random.default_rng(1).permutation(flat(step)).reshape(8, 4)) for step in steps(4, accumulate=8)
    )
    assert sorted_ < 1.15 * spoken < 1.35 * spoken < shuffled


@pytest.mark.parametrize(("batch_size", "world_size"), [(2, 2), (1, 4)])
def test_ranks_are_busy_equally_long(batch_size, world_size):
    works = [[padded(rank) for rank in step] for step in steps(batch_size, world_size, accumulate=8)]
    assert len(works) > 1
    for work in works:
        assert max(work) < 1.1 * np.mean(work)


@pytest.mark.parametrize(("batch_size", "world_size", "accumulate"), [(2, 3, 4), (1, 4, 3), (3, 2, 5), (4, 2, 1)])
def test_loads_are_dealt_exactly(batch_size, world_size, accumulate):
    """Micro-batches of neighbours; of every round the longest for the rank that has had the least."""
    for step in steps(batch_size, world_size, accumulate, epoch=1):
        left = sorted(flat(step), key=lambda i: -DURATIONS[i])
        expected: list[list[frozenset[int]]] = [[] for _ in range(world_size)]
        while left:
            for rank in sorted(expected, key=lambda batches: sum(max(DURATIONS[i] for i in b) for b in batches)):
                rank.append(frozenset(left[:batch_size]))
                left = left[batch_size:]
        assert {frozenset(map(frozenset, rank)) for rank in step} == set(map(frozenset, expected))


def test_no_rank_always_has_the_long_ones():
    longest = [
        int(np.argmax([padded(rank) for rank in step])) for epoch in range(5) for step in steps(8, 4, epoch=epoch)
    ]
    assert set(longest) == {0, 1, 2, 3}


def test_no_micro_batch_always_has_the_long_ones():
    """BatchNorm's running statistics favour the last micro-batch."""
    everything = [step for epoch in range(5) for step in steps(8, accumulate=4, epoch=epoch)]
    assert {int(np.argmax([padded([batch]) for batch in rank])) for [rank] in everything} == {0, 1, 2, 3}


def test_without_shuffling_every_epoch_is_the_same():
    first, second = (steps(8, accumulate=2, epoch=epoch, shuffle=False) for epoch in (0, 1))
    assert [sorted(flat(s)) for s in first] == [sorted(flat(s)) for s in second]
    assert sorted(flat(first[0])) == list(range(16))


@pytest.mark.parametrize("delivered", range(0, 13))
def test_iteration_goes_on_where_it_was_saved(delivered):
    def make():
        return GlobalBatchSampler(DURATIONS, 8, world_size=2, rank=1, accumulate=2, seed=3)

    whole = make()
    whole.set_epoch(4)
    expected = list(whole)
    assert len(expected) == 12
    whole.delivered = delivered
    resumed = make()
    resumed.load_state_dict(whole.state_dict())
    resumed.set_epoch(4)
    assert list(resumed) == expected[delivered:]
    assert len(resumed) == 12
    resumed.set_epoch(5)
    assert len(list(resumed)) == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 4}, "batch_size was 8 when the checkpoint was saved and is 4 now"),
        ({"world_size": 2}, "world_size was 1 when the checkpoint was saved and is 2 now"),
        ({"accumulate": 2}, "accumulate was 1 when"),
        ({"seed": 9}, "seed was 0 when"),
        ({"durations": DURATIONS[:200]}, "utterances was 210 when the checkpoint was saved and is 200 now"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_batches_only_between_epochs(change, message):
    kwargs = {"durations": DURATIONS, "batch_size": 8}
    saved = GlobalBatchSampler(**kwargs)
    changed = GlobalBatchSampler(**{**kwargs, **change})
    saved.delivered = 5
    with pytest.raises(ConfigError, match=message):
        changed.load_state_dict(saved.state_dict())
    saved.delivered = len(saved)
    changed.load_state_dict(saved.state_dict())
    assert list(changed) == []
    changed.set_epoch(1)
    assert len(list(changed)) == len(changed)


@pytest.mark.parametrize("delivered", [0, 26])
def test_another_training_set_is_said_between_epochs_too(caplog, delivered):
    """Its path says nothing: the same one may have been moved."""
    saved = GlobalBatchSampler(DURATIONS, 8)
    saved.delivered = delivered
    for durations, kwargs in ((DURATIONS, {}), (DURATIONS, {"seed": 3}), (DURATIONS, {"bucket_steps": 2})):
        GlobalBatchSampler(durations, 8, **kwargs).load_state_dict(saved.state_dict())
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    for durations, now in ((DURATIONS[:200], 200), ([*DURATIONS[1:], 9.0], 210)):
        GlobalBatchSampler(durations, 8).load_state_dict(saved.state_dict())
        said = f"is not the one that the checkpoint was saved with (210 utterances then, {now} now)"
        assert caplog.messages[-1] == f"the training set {said}"


def test_another_global_batch_is_named_with_the_way_out():
    """And not the number of ranks, which may be another one."""
    two_ranks = GlobalBatchSampler(DURATIONS, 8, world_size=2)
    two_ranks.delivered = 5
    with pytest.raises(ConfigError) as error:
        GlobalBatchSampler(DURATIONS, 8).load_state_dict(two_ranks.state_dict())
    assert str(error.value) == (
        "cannot resume in mid-epoch: the global batch was 16 utterances (8 x 2 ranks x 1 accumulated) and is 8 "
        "utterances (8 x 1 ranks x 1 accumulated): world_size was 2 when the checkpoint was saved and is 1 now; "
        "large_batch.global_batch_size=16 restores it, or resume from a checkpoint of the end of an epoch"
    )
    GlobalBatchSampler(DURATIONS, 8, accumulate=2).load_state_dict(two_ranks.state_dict())
    by_seconds = GlobalBatchSampler(DURATIONS, 8, batch_seconds=60.0, world_size=2)
    by_seconds.delivered = 1
    with pytest.raises(ConfigError, match=r"was 120 s of audio .* is 60 s of .*; data\.batch_seconds=120 restores it"):
        GlobalBatchSampler(DURATIONS, 8, batch_seconds=60.0).load_state_dict(by_seconds.state_dict())
    with pytest.raises(ConfigError, match=r"size=16 data\.batch_seconds=null restores it"):
        by_seconds.load_state_dict(two_ranks.state_dict())


@pytest.mark.parametrize("delivered", [0, 4, 5, 8])
@pytest.mark.parametrize("split", [(4, 2, 1), (2, 1, 4), (1, 4, 2)])
def test_another_split_of_the_same_global_batch_goes_on_with_the_same_steps(delivered, split):
    """An accumulation that was begun begins again: its gradients are in no checkpoint."""

    def make(size, world_size, accumulate, rank=0):
        return GlobalBatchSampler(DURATIONS, size, world_size=world_size, rank=rank, accumulate=accumulate, seed=3)

    saved, (size, world_size, accumulate) = make(4, 1, 2), split
    steps_of = [sorted(flat([list(saved)[2 * i], list(saved)[2 * i + 1]])) for i in range(saved.steps)]
    saved.delivered = delivered
    found = [[] for _ in steps_of[delivered // 2 :]]
    for rank in range(world_size):
        resumed = make(size, world_size, accumulate, rank)
        resumed.load_state_dict(saved.state_dict())
        batches = list(resumed)
        assert len(batches) == len(found) * accumulate
        for index, utterances in enumerate(batches):
            found[index // accumulate] += utterances
    assert [sorted(step) for step in found] == steps_of[delivered // 2 :]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (
            {"batch_size": 64, "world_size": 2, "accumulate": 2},
            DataError,
            "210 utterances, fewer than one global batch of 256",
        ),
        ({"batch_size": 0}, ValueError, "at least 1, not 0 and 1"),
        ({"batch_size": 1, "world_size": 2, "rank": 2}, ValueError, r"rank must be in 0\.\.1, not 2"),
        ({"batch_size": 1, "world_size": 0}, ValueError, "at least 1, not 1 and 0"),
        ({"batch_size": 1, "rank": -1}, ValueError, r"rank must be in 0\.\.0, not -1"),
        ({"batch_size": 1, "rank": 1}, ValueError, r"rank must be in 0\.\.0, not 1"),
        ({"batch_size": 1, "accumulate": 0}, ValueError, "accumulate must be at least 1, not 0"),
    ],
    ids=["too few", "batch size", "rank", "world size", "rank below", "rank beyond", "accumulate"],
)
def test_errors(kwargs, error, message):
    with pytest.raises(error, match=message):
        GlobalBatchSampler(DURATIONS, **kwargs)


@settings(max_examples=100)
@given(n=st.integers(1, 100), batch_size=st.integers(1, 9), world_size=st.integers(1, 5))
def test_evaluation_sees_everything_once_in_equally_many_batches(n, batch_size, world_size):
    def ranks():
        return [
            list(EvalBatchSampler(DURATIONS[:n], batch_size, world_size=world_size, rank=r)) for r in range(world_size)
        ]

    if n < world_size:
        with pytest.raises(DataError, match=f"{n} utterances cannot be spread over {world_size} ranks"):
            ranks()
        return
    batches = ranks()
    assert sorted(i for rank in batches for batch in rank for i in batch) == list(range(n))
    assert len({len(rank) for rank in batches}) == 1
    sizes = [len(batch) for rank in batches for batch in rank]
    assert min(sizes) >= 1
    assert max(sizes) <= max(batch_size, 2)


def test_evaluation_batches_are_sorted_by_duration():
    batches = list(EvalBatchSampler(DURATIONS, 16))
    durations = [DURATIONS[i] for batch in batches for i in batch]
    assert durations == sorted(DURATIONS, reverse=True)


@pytest.mark.parametrize(
    "kwargs", [{"batch_size": 0}, {"batch_size": 1, "world_size": 0}, {"batch_size": 1, "rank": 1}]
)
def test_errors_of_evaluation(kwargs):
    with pytest.raises(ValueError, match="must be"):
        EvalBatchSampler(DURATIONS, **kwargs)


def test_equally_long_utterances_stay_in_order():
    """Whatever a machine's sort does with ties."""
    equal = [1.0] * 200
    assert (
        list(EvalBatchSampler(equal, 200)) == list(GlobalBatchSampler(equal, 200, shuffle=False)) == [list(range(200))]
    )


def test_a_sampler_begins_at_the_beginning():
    """One process, no accumulation, seed 0, shuffled, epoch 0."""
    plain = GlobalBatchSampler(DURATIONS, 8)
    said = GlobalBatchSampler(DURATIONS, 8, world_size=1, rank=0, accumulate=1, seed=0, shuffle=True)
    said.set_epoch(0)
    assert list(plain) == list(said)
    assert plain.state_dict() == {
        "epoch": 0,
        "delivered": 0,
        "utterances": 210,
        "batch_size": 8,
        "batch_seconds": None,
        "world_size": 1,
        "accumulate": 1,
        "seed": 0,
        "bucket_steps": 1,
        "batches": 26,
        "order": said.state_dict()["order"],
    }
    assert EvalBatchSampler(DURATIONS, 8).epoch == 0


def test_the_epoch_under_way_goes_on_and_another_begins():
    sampler = GlobalBatchSampler(DURATIONS, 8)
    sampler.delivered = 3
    sampler.set_epoch(0)
    assert (sampler.epoch, sampler.delivered) == (0, 3)
    sampler.set_epoch(2)
    assert (sampler.epoch, sampler.delivered) == (2, 0)
