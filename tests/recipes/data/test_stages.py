"""Which sets a stage reads, and which utterances of them."""

import logging

import numpy as np
import pytest
import soundfile
import speech_files
from lightning.pytorch.trainer.states import TrainerFn

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.data.config import DataConfig
from lightning_novograd.recipes.asr.data.module import SpeechDataModule
from lightning_novograd.recipes.asr.text.alphabet import Alphabet

ALPHABET = Alphabet(speech_files.LABELS)


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return {split: str(speech_files.write_corpus(folder, split, 4)) for split in ("train", "dev", "test")}


def make(manifests, **options) -> SpeechDataModule:
    return SpeechDataModule(DataConfig.from_mapping({"name": "manifest", **manifests, **options}), ALPHABET)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (TrainerFn.FITTING, {"train", "dev"}),
        (TrainerFn.VALIDATING, {"dev"}),
        (TrainerFn.TESTING, {"test"}),
        (TrainerFn.PREDICTING, {"test"}),
        ("predict", {"test"}),
    ],
)
def test_lightning_names_a_stage_by_an_enum(manifests, stage, expected):
    data = make(manifests)
    data.setup(stage)
    assert data.datasets.keys() == expected


def test_an_unknown_stage_is_an_error(manifests):
    with pytest.raises(ValueError, match="'fitting'"):
        make(manifests).setup("fitting")


def test_a_test_set_that_is_not_there_is_found_before_the_training(manifests, tmp_path):
    data = make({**manifests, "test": str(tmp_path / "tset.json")})
    with pytest.raises(DataError, match=r"manifest .*tset\.json does not exist"):
        data.setup("fit")


def test_limits_of_duration_are_for_the_training_set_and_the_others_are_counted(manifests, caplog):
    data = make(manifests, min_duration=0.25, max_duration=0.45)
    with caplog.at_level(logging.INFO):
        data.setup()
    assert {split: len(dataset) for split, dataset in data.datasets.items()} == {"train": 2, "dev": 4, "test": 4}
    said = [record.getMessage() for record in caplog.records]
    assert f"{manifests['train']}: 2 of 4 utterances are outside 0.25 to 0.45 s and are left out" in said
    for split in ("dev", "test"):
        assert (
            f"{manifests[split]}: 2 of 4 utterances are outside 0.25 to 0.45 s and are kept: "
            "the limits are for training"
        ) in said


def test_the_dev_set_is_as_it_was_recorded_in_batches_of_its_own_size(manifests):
    data = make(manifests, batch_size=1, eval_batch_size=3, augment={"speed": [0.5, 2.0]})
    data.setup()
    assert [len(batch.texts) for batch in data.train_dataloader()] == [1] * 4
    for split, loader in (("dev", data.val_dataloader), ("test", data.test_dataloader)):
        dataset = data.datasets[split]
        expected = {u.text: soundfile.read(u.audio, dtype="float32")[0] for u in dataset.utterances}
        for epoch in range(3):
            assert all(np.array_equal(dataset[epoch, i].wave, expected[dataset[epoch, i].text]) for i in range(4))
        batches = list(loader())
        assert [len(batch.texts) for batch in batches] == [2, 2]  # at most three
        for batch in batches:
            for wave, samples, text in zip(batch.wave_BS, batch.wave_lens_B, batch.texts, strict=True):
                assert np.array_equal(wave[:samples], expected[text])
    train = data.datasets["train"]
    assert all(len(train[0, i].wave) != round(16000 * train.durations[i]) for i in range(4)), "there is augmentation"
