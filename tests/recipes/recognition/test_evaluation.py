"""A trained model on a set: each text at its place, and what the error rates are made of."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import speech_files

from lightning_novograd.recipes.asr.data.config import DataConfig
from lightning_novograd.recipes.asr.data.manifest import Utterance
from lightning_novograd.recipes.asr.recognition import evaluation
from lightning_novograd.recipes.asr.recognition.evaluation import BatchLoader, count_errors, read_set, transcribe_set
from lightning_novograd.recipes.asr.text.alphabet import Alphabet

RECOGNIZER = SimpleNamespace(alphabet=Alphabet(speech_files.LABELS), sample_rate=16000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for name, size in (("train", 2), ("dev", 3), ("test", 4), ("other", 5)):
        speech_files.write_corpus(folder, name, size)
    return folder


def run_on(folder: Path, *splits: str) -> SimpleNamespace:
    cfg = {"name": "manifest", **{split: str(folder / f"{split}.json") for split in splits}, "max_duration": 0.55}
    return SimpleNamespace(data=DataConfig.from_mapping(cfg))


@pytest.mark.parametrize(
    ("splits", "manifest", "expected"),
    [
        (("train", "dev", "test"), None, ("test", 4)),
        (("train", "dev"), None, ("dev", 3)),
        (("train", "dev", "test"), "other", ("other", 5)),
        (("train", "dev"), "other", ("other", 5)),
    ],
)
def test_the_set_that_is_meant(folder, splits, manifest, expected):
    dataset = read_set(run_on(folder, *splits), RECOGNIZER, manifest and folder / f"{manifest}.json")
    name, size = expected
    assert {u.manifest for u in dataset.utterances} == {folder / f"{name}.json"}
    assert len(dataset) == size


def test_each_text_is_at_its_place_and_the_workers_are_let_go(folder, monkeypatch):
    loaders = []

    class Loader(BatchLoader):
        def __init__(self, *args, **options):
            super().__init__(*args, **{**options, "num_workers": 0})
            self.closed = False
            loaders.append((self, options))

        def close(self):
            self.closed = True

    monkeypatch.setattr(evaluation, "BatchLoader", Loader)
    dataset = read_set(run_on(folder, "train", "dev"), RECOGNIZER, folder / "other.json")
    sizes = []

    def recognizer(wave_BS, wave_lens_B):
        sizes.append(len(wave_BS))
        return [str(n) for n in wave_lens_B.tolist()]

    expected = [str(round(16000 * duration)) for duration in dataset.durations]
    assert transcribe_set(recognizer, dataset, 2) == expected
    assert sorted(sizes) == [1, 2, 2]
    assert transcribe_set(recognizer, dataset, 5, num_workers=3) == expected
    assert [(loader.closed, options) for loader, options in loaders] == [
        (True, {"num_workers": 0}),
        (True, {"num_workers": 3}),
    ]


def test_the_totals():
    texts = ["one two", "six"]
    utterances = [Utterance(Path("a.wav"), 1.0, text, i, Path("m.json")) for i, text in enumerate(texts)]
    assert count_errors(SimpleNamespace(utterances=utterances), ["one too", "six"]) == {
        "manifest": "m.json",
        "num_utterances": 2,
        "wer": pytest.approx(1 / 3),
        "word_errors": 1,
        "words": 3,
        "cer": pytest.approx(1 / 10),
        "char_errors": 1,
        "chars": 10,
        "word_insertions": 0,
        "word_deletions": 0,
        "word_substitutions": 1,
        "char_insertions": 0,
        "char_deletions": 0,
        "char_substitutions": 1,
        "wer_interval": (0.0, 0.5),
        "audio_seconds": 2.0,
    }
