"""Batches by seconds: equally many on every rank, equally long; a step is the mean over its utterances."""

import numpy as np
import pytest
import speech_files
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.data.config import DataConfig
from lightning_novograd.recipes.asr.data.module import SpeechDataModule
from lightning_novograd.recipes.asr.text.alphabet import Alphabet
from lightning_novograd.recipes.common.data.mixture import Mixture
from lightning_novograd.recipes.common.data.sampler import GlobalBatchSampler
from lightning_novograd.recipes.common.data.steps import balanced, cut

DURATIONS = np.random.default_rng(0).gamma(4.0, 0.7, 400) + 0.3


def samplers(seconds, world_size=1, accumulate=1, epoch=0, **kwargs) -> list[GlobalBatchSampler]:
    options = {"world_size": world_size, "accumulate": accumulate, "batch_seconds": seconds, **kwargs}
    made = [GlobalBatchSampler(DURATIONS, 7, rank=rank, **options) for rank in range(world_size)]
    for sampler in made:
        sampler.set_epoch(epoch)
    return made


def steps(*args, **kwargs) -> list[list[list]]:
    """Micro-batches by step and rank."""
    ranks = samplers(*args, **kwargs)
    batches = [list(rank) for rank in ranks]
    assert {len(b) for b in batches} == {len(ranks[0])}, "equally many on every rank, as many as it says"
    accumulate = ranks[0].accumulate
    return [[b[at : at + accumulate] for b in batches] for at in range(0, len(ranks[0]), accumulate)]


def flat(step) -> list[int]:
    return sorted(i for rank in step for batch in rank for i in batch)


@pytest.mark.parametrize("pool", [1, 3])
@pytest.mark.parametrize(
    ("seconds", "world_size", "accumulate"), [(160, 1, 1), (80, 2, 1), (80, 1, 2), (40, 2, 2), (40, 4, 1)]
)
def test_a_step_sees_the_same_utterances_however_they_are_split(seconds, world_size, accumulate, pool):
    whole = [flat(step) for step in steps(160.0, bucket_steps=pool, seed=5, epoch=3)]
    assert [flat(step) for step in steps(seconds, world_size, accumulate, bucket_steps=pool, seed=5, epoch=3)] == whole


@pytest.mark.parametrize("pool", [1, 4])
def test_steps_are_equally_long_and_nobody_is_heard_twice(pool):
    for epoch in range(4):
        made = [flat(step) for step in steps(40.0, 2, 2, epoch, bucket_steps=pool)]
        assert len(made) == int(DURATIONS.sum() / 160)
        for step in made:
            assert abs(DURATIONS[step].sum() - 160) < 2 * DURATIONS.max()
        heard = [i for step in made for i in step]
        assert len(heard) == len(set(heard))
        assert DURATIONS.sum() - DURATIONS[heard].sum() < 160 + DURATIONS.max()
    assert len({len(step) for step in made}) > 1


@settings(max_examples=40, deadline=None)
@given(world_size=st.integers(1, 3), accumulate=st.integers(1, 3), epoch=st.integers(0, 3), pool=st.integers(1, 4))
def test_the_mean_over_weighted_micro_batches_is_that_over_utterances(world_size, accumulate, epoch, pool):
    loss = np.random.default_rng(1).random(len(DURATIONS))
    for step in steps(2.0 * DURATIONS.max(), world_size, accumulate, epoch, bucket_steps=pool):
        micro_batches = [batch for rank in step for batch in rank]
        assert all(micro_batches)
        mean = np.mean([batch.weight * loss[batch].mean() for batch in micro_batches])
        assert mean == pytest.approx(loss[flat(step)].mean(), rel=1e-12)


def test_by_number_all_weights_are_1():
    assert {batch.weight for batch in GlobalBatchSampler(DURATIONS, 7, world_size=2, accumulate=3)} == {1.0}


def test_micro_batches_of_a_step_cost_the_same_with_little_padding():
    for step in steps(40.0, 2, 2, bucket_steps=4):
        padded = [len(batch) * DURATIONS[batch].max() for rank in step for batch in rank]
        assert max(padded) < 1.3 * np.mean(padded)
        assert sum(padded) < 1.3 * DURATIONS[flat(step)].sum()


def test_an_epoch_has_as_many_steps_whatever_a_mixture_draws():
    mixture = Mixture([300, 100], [1.5, 0.3])
    expected = int((1.5 * DURATIONS[:300].sum() + 0.3 * DURATIONS[300:].sum()) / 60)
    for epoch in range(5):
        made = steps(30.0, 2, 1, epoch, bucket_steps=3, mixture=mixture)
        assert len(made) == expected
        assert all(len(batch) for step in made for rank in step for batch in rank)


@pytest.mark.parametrize("delivered", [1, 9])
def test_iteration_goes_on_where_it_was_saved(delivered):
    [whole] = samplers(40.0, accumulate=2, bucket_steps=3)
    expected = list(whole)
    whole.delivered = delivered
    [resumed] = samplers(40.0, accumulate=2, bucket_steps=3)
    resumed.load_state_dict(whole.state_dict())
    assert list(resumed) == expected[delivered:]
    with pytest.raises(ConfigError, match=r"batch_seconds was 40\.0 when the checkpoint was saved and is 50\.0 now"):
        samplers(50.0, accumulate=2, bucket_steps=3)[0].load_state_dict(whole.state_dict())


def test_too_little():
    with pytest.raises(DataError, match=r"data\.batch_seconds is 5, but must be at least twice the longest utterance"):
        samplers(5.0)
    with pytest.raises(DataError, match=r"fewer than one global batch of 900 s x 2 ranks x accumulation 1"):
        samplers(900.0, 2)


@settings(max_examples=50)
@given(parts=st.integers(1, 12), n=st.integers(12, 60), seed=st.integers(0, 99))
def test_micro_batches_are_balanced_as_well_as_can_be(parts, n, seed):
    lengths = np.sort(np.random.default_rng(seed).uniform(1, 9, n))[::-1]
    batches = balanced(lengths, parts)
    assert np.concatenate(batches).tolist() == list(range(n))
    assert len(batches) == parts
    assert min(map(len, batches)) >= 1
    most = max(len(batch) * lengths[batch[0]] for batch in batches)
    # filled one after the other to a little less, they would be more
    first = count = 0
    while first < n:
        first += max(1, int(0.999 * most / lengths[first]))
        count += 1
    assert count > parts or most == lengths[0]


@given(n=st.integers(1, 40), parts=st.integers(1, 10))
def test_equal_elements_are_cut_exactly(n, parts):
    assert cut(np.ones(n * parts), parts).tolist() == list(range(0, n * parts + 1, n))


def test_a_batch_knows_its_weight(tmp_path):
    train = speech_files.write_corpus(tmp_path, "train", 20)
    cfg = {"name": "manifest", "train": str(train), "dev": str(train), "batch_seconds": 1.7}
    for num_workers in (0, 1):
        data = SpeechDataModule(
            DataConfig.from_mapping({**cfg, "num_workers": num_workers}), Alphabet(speech_files.LABELS)
        )
        data.setup("fit")
        loader = data.train_dataloader()
        loader.sampler.accumulate = 1
        assert {batch.weight for batch in loader} == {1.0}, "a step of one micro-batch"
        assert {batch.weight for batch in data.val_dataloader()} == {1.0}
        data.teardown()
    several = samplers(40.0, accumulate=2)[0]
    assert len({batch.weight for batch in several}) > 1
