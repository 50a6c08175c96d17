"""Utterances, looked up by epoch and index."""

import numpy as np
import pytest
import soundfile
import speech_files
import torch

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.data.augment import Augment, AugmentConfig
from lightning_novograd.recipes.asr.data.dataset import Item, SpeechDataset, collate
from lightning_novograd.recipes.asr.data.manifest import read_manifest
from lightning_novograd.recipes.asr.text.alphabet import Alphabet

ALPHABET = Alphabet(speech_files.LABELS)


def dataset_of(folder, entries, **options):
    path = speech_files.write_manifest(folder / "m.json", entries)
    return SpeechDataset(read_manifest(path, ALPHABET, downmix=True), ALPHABET, 16000, **options)


def entry(name: str, **changes):
    return {"audio_filepath": name, "duration": 1.0, "text": "one", **changes}


@pytest.mark.parametrize("cache", [False, True])
def test_samples_are_those_of_the_recordings_and_of_parts(tmp_path, cache):
    samples = np.arange(16000, dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 16000)
    soundfile.write(tmp_path / "b.wav", -samples, 16000)
    part = entry("a.wav", offset=0.25, duration=0.5, text="two")
    dataset = dataset_of(tmp_path, [entry("a.wav", duration=1.05), part, entry("b.wav")], cache=cache)
    waves = [dataset[0, i].wave for i in range(3)]
    assert all(wave.dtype == np.float32 for wave in waves)
    for wave, expected in zip(waves, (samples, samples[4000:12000], -samples), strict=True):
        assert np.array_equal(wave * 32768, expected)
    assert dataset[3, 1].text == "two"
    assert dataset[3, 1].targets == ALPHABET.encode("two")
    assert dataset.durations == [1.05, 0.5, 1.0]
    assert len(dataset) == 3


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize(
    ("changes", "first", "last"),
    [
        ({"duration": 0.92}, 0, 16000),  # longer than it says: the manifest has rounded, nothing is cut off
        ({"duration": 1.08}, 0, 16000),
        ({"offset": 0.0, "duration": 0.92}, 0, 14720),  # a part is as long as it says
        ({"offset": 0.5, "duration": 0.58}, 8000, 16000),  # and ends with its file
        ({"offset": 0.25, "duration": 0.75}, 4000, 16000),
    ],
)
def test_what_of_a_file_is_heard_where_its_duration_is_not_exact(tmp_path, changes, first, last, cache):
    samples = np.arange(16000, dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 16000)
    wave = dataset_of(tmp_path, [entry("a.wav", **changes)], cache=cache)[0, 0].wave
    assert np.array_equal(wave * 32768, samples[first:last])


def test_samples_that_are_kept_are_rounded_and_clipped_and_shared(tmp_path):
    wave = np.array([2.0, -2.0, 1.0, -1.0, 1.6 / 32768, -1.6 / 32768, 0.0] * 2000)
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    dataset = dataset_of(tmp_path, [entry("a.wav", duration=0.875)], cache=True)
    assert (dataset[0, 0].wave[:7] * 32768).tolist() == [32767, -32768, 32767, -32768, 2, -2, 0]
    assert dataset._samples.is_shared()
    assert dataset._samples.dtype == torch.int16


def test_nothing_is_changed_unless_said(tmp_path):
    speech_files.write_audio(tmp_path / "a.wav")
    speech_files.write_audio(tmp_path / "b.wav", channels=2)
    entries = [entry("a.wav")]
    plain = dataset_of(tmp_path, entries)
    assert (plain.downmix, plain._samples, plain.augment) == (False, None, None)
    assert dataset_of(tmp_path, [entry("b.wav")], downmix=True)[0, 0].wave.shape == (16000,)
    drawn = dataset_of(tmp_path, entries, augment=Augment(AugmentConfig(speed=[0.5, 1.0, 2.0])))
    expected = [int(np.random.default_rng((0, epoch, 0)).integers(3)) for epoch in range(20)]
    assert [round(np.log2(16000 / len(drawn[e, 0].wave))) + 1 for e in range(20)] == expected
    assert set(expected) == {0, 1, 2}


def test_a_batch():
    items = [Item(np.float32([1, 2]), [3], "a"), Item(np.float32([4]), [5, 6, 7], "bcd")]
    batch = collate(items)
    assert batch.wave_BS.tolist() == [[1, 2], [4, 0]]
    assert batch.targets_BU.tolist() == [[3, 0, 0], [5, 6, 7]]
    assert (batch.wave_lens_B.tolist(), batch.target_lens_B.tolist()) == ([2, 1], [1, 3])
    assert (batch.wave_BS.dtype, batch.targets_BU.dtype) == (torch.float32, torch.int64)
    assert batch.texts == ["a", "bcd"]


def test_an_utterance_says_where_it_is_from(tmp_path):
    speech_files.write_audio(tmp_path / "a.wav")
    dataset = dataset_of(tmp_path, [entry("a.wav")] * 2)
    assert collate([dataset[0, 1], dataset[0, 0]]).places == [f"{tmp_path}/m.json:2", f"{tmp_path}/m.json:1"]


def test_samples_that_are_not_finite_are_kept_for_training_alone(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.float32([0.5, np.nan] * 8000), 16000, subtype="FLOAT")
    assert np.isnan(dataset_of(tmp_path, [entry("a.wav")], keep_nonfinite=True)[0, 0].wave).sum() == 8000
    where = r"^.*/m\.json:1: audio file .*a\.wav has 8000 samples that are not finite"
    with pytest.raises(DataError, match=where):
        dataset_of(tmp_path, [entry("a.wav")])[0, 0]
    with pytest.raises(DataError, match=where):  # 16 bits would make other numbers of them
        dataset_of(tmp_path, [entry("a.wav")], keep_nonfinite=True, cache=True)
