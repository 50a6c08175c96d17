"""What goes wrong in a worker process comes out as it would without one."""

import traceback

import pytest
import speech_files

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.data.config import DataConfig
from lightning_novograd.recipes.asr.data.module import SpeechDataModule
from lightning_novograd.recipes.asr.text.alphabet import Alphabet
from lightning_novograd.recipes.common.data.loader import BatchLoader, ResumableLoader
from lightning_novograd.recipes.common.data.sampler import EvalBatchSampler, GlobalBatchSampler

DURATIONS = [1.0, 2.0, 3.0, 4.0]


class Broken:
    """Its third item cannot be had."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getitem__(self, key):
        if key[1] == 2:
            raise self.error
        return key


def load(loader) -> list:
    return list(loader)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("error", [DataError("m.json:3: audio file a.wav is corrupt"), ConfigError("data.x", "is bad")])
def test_an_error_of_ours_is_one_line_from_a_worker_too(num_workers, error):
    loader = BatchLoader(Broken(error), EvalBatchSampler(DURATIONS, 2), list, num_workers=num_workers)
    with pytest.raises(type(error)) as caught:
        load(loader)
    assert str(caught.value) == str(error)
    assert len("".join(traceback.format_exception_only(caught.value)).splitlines()) == 1
    assert "Traceback" not in str(caught.value)
    loader.close()


def test_batches_before_the_error_are_delivered_and_counted():
    sampler = GlobalBatchSampler(DURATIONS, 1, shuffle=False)
    loader = ResumableLoader(Broken(DataError("bad")), sampler, list, num_workers=1)
    batches = iter(loader)
    assert [next(batches), next(batches)] == [[(0, 0)], [(0, 1)]]
    with pytest.raises(DataError, match=r"^bad$"):
        next(batches)
    assert sampler.delivered == 2
    loader.close()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_corpus_that_vanishes_during_training(tmp_path, num_workers):
    manifest = speech_files.write_corpus(tmp_path, "train", 4)
    cfg = {"name": "manifest", "train": str(manifest), "dev": str(manifest), "batch_size": 1}
    data = SpeechDataModule(
        DataConfig.from_mapping({**cfg, "num_workers": num_workers}), Alphabet(speech_files.LABELS), seed=1
    )
    data.setup("fit")
    for file in (tmp_path / "audio").iterdir():
        file.unlink()
    with pytest.raises(DataError) as error:
        load(data.train_dataloader())
    data.teardown()
    line = next(iter(data.train_dataloader().sampler))[0] + 1
    assert str(error.value) == f"{manifest}:{line}: audio file {tmp_path}/audio/train_{line - 1}.wav does not exist"
