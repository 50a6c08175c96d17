"""Several training manifests: how often each utterance is heard in an epoch, and in which batches."""

from collections import Counter

import numpy as np
import pytest
import speech_files
from hypothesis import given
from hypothesis import strategies as st

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.data.config import DataConfig
from lightning_novograd.recipes.asr.data.module import SpeechDataModule
from lightning_novograd.recipes.asr.text.alphabet import Alphabet
from lightning_novograd.recipes.common.data.mixture import Mixture
from lightning_novograd.recipes.common.data.sampler import GlobalBatchSampler

SIZES, WEIGHTS = [10, 20, 7], [2.0, 0.25, 1.5]


@given(
    parts=st.lists(st.tuples(st.integers(4, 30), st.sampled_from([0.25, 0.5, 1.0, 1.3, 2.0, 3.75])), min_size=1),
    epoch=st.integers(0, 5),
)
def test_every_utterance_is_heard_as_often_as_its_weight_says(parts, epoch):
    sizes, weights = zip(*parts, strict=True)
    mixture = Mixture(sizes, weights)
    entries = mixture.entries(1, epoch)
    assert len(set(entries.tolist())) == len(entries) == mixture.size
    heard = Counter((entries % mixture.total).tolist())
    first = 0
    for size, weight in parts:
        counts = [heard[i] for i in range(first, first + size)]
        assert set(counts) <= {int(weight), int(np.ceil(weight))}
        assert sum(counts) == int(weight) * size + int((weight - int(weight)) * size + 0.5)
        first += size


def test_what_is_drawn_depends_on_seed_and_epoch_alone():
    mixture = Mixture(SIZES, WEIGHTS)
    drawn = {(seed, epoch): str(mixture.entries(seed, epoch)) for seed in (1, 2) for epoch in (0, 1, 2)}
    assert len(set(drawn.values())) == 6
    assert drawn[2, 1] == str(Mixture(SIZES, WEIGHTS).entries(2, 1))
    over = np.concatenate([mixture.entries(1, epoch) for epoch in range(40)]) % mixture.total
    assert set(over.tolist()) == set(range(37)), "sooner or later everything is heard"
    assert mixture.weights.tolist() == [2.0] * 10 + [0.25] * 20 + [1.5] * 7


def test_a_weight_that_leaves_nothing():
    with pytest.raises(DataError, match=r"a weight of 0\.01 leaves none of a manifest's 20 utterances in an epoch"):
        Mixture([5, 20], [1.0, 0.01])


@pytest.mark.parametrize(("batch_size", "world_size", "accumulate"), [(4, 1, 1), (2, 2, 1), (1, 2, 2), (1, 1, 4)])
def test_a_step_is_the_same_however_it_is_split(batch_size, world_size, accumulate):
    durations = np.random.default_rng(0).uniform(1, 5, 37)

    def steps(batch_size, world_size=1, accumulate=1):
        ranks = [
            list(
                GlobalBatchSampler(
                    durations,
                    batch_size,
                    world_size=world_size,
                    rank=rank,
                    accumulate=accumulate,
                    bucket_steps=2,
                    mixture=Mixture(SIZES, WEIGHTS),
                )
            )
            for rank in range(world_size)
        ]
        return [
            sorted(i for rank in ranks for batch in rank[at : at + accumulate] for i in batch)
            for at in range(0, len(ranks[0]), accumulate)
        ]

    whole = steps(4)
    assert len(whole) == (20 + 5 + 7 + 4) // 4
    assert steps(batch_size, world_size, accumulate) == whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for name, size in (("a", 4), ("b", 6), ("dev", 3)):
        speech_files.write_corpus(folder, name, size)
    return folder


def make(folder, train, **options) -> SpeechDataModule:
    cfg = {"name": "manifest", "train": train, "dev": str(folder / "dev.json"), "batch_size": 1, **options}
    return SpeechDataModule(DataConfig.from_mapping(cfg), Alphabet(speech_files.LABELS), seed=1)


def test_several_manifests_are_one_training_set(folder, caplog):
    with caplog.at_level("INFO"):
        data = make(folder, [str(folder / "a.json"), str(folder / "b.json")])
        data.setup("fit")
    heard = [index for _, index in (key for keys in data.train_dataloader()._loader.batch_sampler for key in keys)]
    assert sorted(heard) == list(range(10))
    assert [u.manifest.name for u in data.datasets["train"].utterances] == ["a.json"] * 4 + ["b.json"] * 6
    assert "train set: 4 utterances" in caplog.text
    assert "train set: 6 utterances" in caplog.text


def test_weights(folder, caplog):
    weighted = [
        {"manifest_filepath": str(folder / "a.json"), "weight": 2},
        {"manifest_filepath": str(folder / "b.json"), "weight": 0.5},
    ]
    with caplog.at_level("INFO"):
        data = make(folder, weighted, augment={"speed": [0.5, 1.0, 2.0]})
        data.setup("fit")
    assert "an epoch hears 11 utterances" in caplog.text
    loader = data.train_dataloader()
    dataset = data.datasets["train"]
    entries = [index for _, index in (key for keys in loader._loader.batch_sampler for key in keys)]
    assert len(entries) == 11
    texts = Counter(u.text for u in dataset.utterances[:4])
    heard = Counter(dataset[0, entry].text for entry in entries if entry % 10 < 4)
    assert heard == Counter({text: 2 * count for text, count in texts.items()})
    lengths = {len(dataset[epoch, entry].wave) for epoch in range(9) for entry in (0,)}
    assert len(lengths) == 3
    assert any(len(dataset[e, 0].wave) != len(dataset[e, 10].wave) for e in range(9)), "augmented each in its own way"
    assert np.allclose(
        dataset.lengths(1, np.array(entries)), [len(dataset[1, entry].wave) / 16000 for entry in entries], atol=1e-4
    )


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([], "data.train: is missing: give the path of a manifest"),
        ([""], "data.train: has an empty path"),
        (["a.json", "b.json", "a.json"], "data.train: has a.json more than once; give it a weight instead"),
        ([3], r"data.train\[0\]: must be a mapping, not 3"),
        (["a.json", {"weight": 2}], r"data.train\[1\].manifest_filepath: is missing"),
        ([{"manifest_filepath": "a", "weight": 0}], r"data.train\[0\].weight: must be more than 0.0, not 0"),
        ([{"manifest_filepath": "a", "wieght": 1}], r"data.train\[0\].wieght: unknown key; did you mean 'weight'"),
        ({"a.json": 2}, "data.train: must be a string or list or null, not {'a.json': 2}"),
    ],
)
def test_bad_lists(train, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        DataConfig.from_mapping({"name": "manifest", "train": train, "dev": "d.json"})
