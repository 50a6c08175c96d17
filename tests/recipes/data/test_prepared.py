"""A run looks at its recordings once, in one process, and the next run finds what it has seen."""

import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import speech_files
from lightning.pytorch.trainer.states import TrainerFn

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.data import dataset as dataset_module
from lightning_novograd.recipes.asr.data.cache import headers
from lightning_novograd.recipes.asr.data.config import DataConfig
from lightning_novograd.recipes.asr.data.manifest import Utterance
from lightning_novograd.recipes.asr.data.module import SpeechDataModule
from lightning_novograd.recipes.asr.data.summary import summarize
from lightning_novograd.recipes.asr.text.alphabet import Alphabet

ALPHABET = Alphabet(speech_files.LABELS)


@pytest.fixture
def folder(tmp_path):
    for split, size in (("train", 4), ("dev", 3), ("test", 2)):
        speech_files.write_corpus(tmp_path / "corpus", split, size)
    return tmp_path


def make(folder, rank: int | None = 0, fn=TrainerFn.FITTING, **options) -> SpeechDataModule:
    """Under a trainer, unless `rank` is None."""
    cfg = {split: str(folder / "corpus" / f"{split}.json") for split in ("train", "dev", "test")}
    cfg |= {"name": "manifest", "cache_dir": str(folder / "cache"), "cache_audio": True, "batch_size": 1, **options}
    data = SpeechDataModule(DataConfig.from_mapping(cfg), ALPHABET)
    if rank is not None:
        data.trainer = SimpleNamespace(local_rank=rank, state=SimpleNamespace(fn=fn))
    return data


def files_in(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def waves(data, split="train") -> list[np.ndarray]:
    dataset = data.datasets[split]
    return [dataset[0, i].wave for i in range(len(dataset))]


@pytest.fixture
def no_audio(monkeypatch):
    """From now on no recording may be opened."""

    def forbid():
        def refuse(path, *args, **kwargs):
            raise AssertionError(f"{path} was opened")

        monkeypatch.setattr(headers, "read_header", refuse)
        monkeypatch.setattr(dataset_module, "load_audio", refuse)

    return forbid


def test_other_processes_and_later_runs_open_no_recording(folder, no_audio):
    first = make(folder)
    first.prepare_data()
    first.setup(TrainerFn.FITTING)
    assert first.datasets.keys() == {"train", "dev"}
    expected = waves(make_and_read(folder, cache_audio=False))
    no_audio()
    later = make(folder)
    later.prepare_data()
    for data in (make(folder, rank=1), make(folder, rank=3), later, make(folder, rank=None)):
        data.setup(TrainerFn.FITTING)
        assert all(map(np.array_equal, waves(data), expected))
        copy = pickle.loads(pickle.dumps(data.datasets["train"]))
        assert all(np.array_equal(copy[0, i].wave, expected[i]) for i in range(4))
        assert len(pickle.dumps(data.datasets["train"])) < 8000, "samples are mapped again"


def make_and_read(folder, **options) -> SpeechDataModule:
    data = make(folder, rank=None, **options)
    data.setup("fit")
    return data


def test_files_are_those_of_the_sets_that_are_needed(folder):
    before = files_in(folder)
    data = make(folder)
    data.prepare_data()
    made = files_in(folder) - before
    assert {name for name in made if "headers" in name} == {
        "corpus/.train.json.headers.npz",
        "corpus/.dev.json.headers.npz",
    }
    assert sorted(os.path.dirname(name) for name in made) == ["cache/audio"] * 2 + ["corpus"] * 2
    read = data.datasets["train"]
    data.setup(TrainerFn.FITTING)
    assert data.datasets["train"] is read, "the process that prepared does not read again"


def test_nothing_is_written_without_a_trainer(folder):
    before = files_in(folder)
    data = make(folder, rank=None)
    data.prepare_data()
    assert data.datasets == {}
    data.setup()
    assert files_in(folder) == before


def test_a_recording_that_has_changed_is_decoded_again(folder):
    make(folder).prepare_data()
    audio = folder / "corpus" / "audio" / "train_2.wav"
    old = waves(make_and_read(folder))
    duration = json.loads((folder / "corpus" / "train.json").read_text().splitlines()[2])["duration"]
    speech_files.write_audio(audio, duration, seed=99)
    os.utime(audio, (1, 1))
    data = make(folder)
    data.prepare_data()
    assert [np.array_equal(a, b) for a, b in zip(waves(data), old, strict=True)] == [True, True, False, True]
    assert len(list((folder / "cache" / "audio").iterdir())) == 2, "it has taken the place of the old one"


def test_what_is_wrong_is_raised_by_setup_in_every_process(folder):
    """Raised by prepare_data in one, it would leave the others waiting."""
    audio = folder / "corpus" / "audio" / "train_2.wav"
    audio.unlink()
    first = make(folder)
    first.prepare_data()
    for data in (first, make(folder, rank=1)):
        with pytest.raises(DataError, match=r"train\.json:3: audio file .*train_2\.wav does not exist"):
            data.setup(TrainerFn.FITTING)
    assert len(headers.Headers(folder / "corpus" / "train.json")._known) == 3, "the good ones are remembered"


def test_what_goes_wrong_later_is_found_by_every_process_too(folder):
    """What the first process has just found wrong, the others do not take from an earlier run."""
    make(folder).prepare_data()
    for audio in (folder / "corpus" / "audio").glob("train_*.wav"):
        audio.unlink()
        first = make(folder)
        first.prepare_data()
        for data in (first, make(folder, rank=1)):
            with pytest.raises(DataError, match=f"audio file .*{audio.name} does not exist"):
                data.setup(TrainerFn.FITTING)


def test_the_test_set_has_its_turn(folder):
    data = make(folder, fn=TrainerFn.TESTING)
    data.prepare_data()
    assert data.datasets.keys() == {"test"}


def test_a_summary_of_the_training_set_is_said_once(folder, caplog):
    with caplog.at_level("INFO"):
        data = make(folder)
        data.prepare_data()
        data.setup(TrainerFn.FITTING)
    assert caplog.text.count("never used:") == 1


def test_the_summary():
    texts = ["ab a", "b"] * 3
    utterances = [Utterance(Path("a.wav"), d, t, 1, Path("m")) for d, t in zip((1, 1, 1, 1, 2, 11), texts, strict=True)]
    lines = summarize(utterances, Alphabet("ab 'ü")).split("\n")
    assert lines[0] == "durations from 1.00 to 11.00 s, half of them below 1.00 s"
    assert lines[1] == f"    1.00 to   2.00 s {'#' * 40} 4"
    assert lines[2] == f"    2.00 to   3.00 s {'#' * 10}{' ' * 30} 1"
    assert lines[3] == f"    3.00 to   4.00 s {' ' * 40} 0"
    assert lines[10] == f"   10.00 to  11.00 s {'#' * 10}{' ' * 30} 1"
    assert lines[11:] == ["letters: a 6 b 6 space 3", "never used: ' ü"]
    assert summarize(utterances, Alphabet("ab ")).endswith("never used: none")
