"""The data module: the same utterances for every factorization, none lost or repeated by a resume."""

import itertools
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import speech_files
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.large_batch import solve_batch_ramp
from lightning_novograd.recipes.asr.data import module as module_file
from lightning_novograd.recipes.asr.data.config import DataConfig
from lightning_novograd.recipes.asr.data.corpora.manifest import OwnManifests
from lightning_novograd.recipes.asr.data.dataset import Batch
from lightning_novograd.recipes.asr.data.module import SpeechDataModule
from lightning_novograd.recipes.asr.text.alphabet import Alphabet
from lightning_novograd.training.callbacks.batch_ramp import BatchRampScheduler

TRAIN, DEV = 14, 5
ALPHABET = Alphabet(speech_files.LABELS)


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return {
        "train": speech_files.write_corpus(folder, "train", TRAIN),
        "dev": speech_files.write_corpus(folder, "dev", DEV),
    }


@pytest.fixture
def make_data(manifests):
    def make(batch_size: int = 4, seed: int = 1, **options) -> SpeechDataModule:
        cfg = {"name": "manifest", **{k: str(v) for k, v in manifests.items()}, "batch_size": batch_size, **options}
        return SpeechDataModule(DataConfig.from_mapping(cfg), ALPHABET, seed=seed)

    return make


class Listener(pl.LightningModule):
    """Learns nothing; writes down what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.heard: list[list[str]] = []
        self.evaluated: list[str] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.heard.append(list(batch.texts))
        return self.weight * batch.wave_BS.mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluated += batch.texts

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class AtEpochEnd(ModelCheckpoint):
    """Has a key of its own in the checkpoint, so that it can stand beside another one."""

    state_key = "AtEpochEnd"


def fit(data, folder, callbacks=(), ckpt_path=None, **trainer) -> Listener:
    listener = Listener()
    options = {"max_epochs": 3, "enable_checkpointing": bool(callbacks), **trainer}
    pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    ).fit(listener, data, ckpt_path=ckpt_path)
    return listener


def test_batches_are_padded_and_complete(make_data):
    data = make_data(cache_audio=True)
    data.prepare_data()
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert [len(b.texts) for b in batches] == [4, 4, 4]
    for batch in batches:
        assert batch.wave_BS.dtype == torch.float32
        assert batch.wave_lens_B.dtype == batch.target_lens_B.dtype == batch.targets_BU.dtype == torch.int64
        assert batch.wave_BS.shape == (4, batch.wave_lens_B.max())
        assert batch.targets_BU.shape == (4, batch.target_lens_B.max())
        for wave, samples in zip(batch.wave_BS, batch.wave_lens_B, strict=True):
            assert wave[:samples].abs().max() > 0.09
            assert not wave[samples:].any()
        for ids, length, text in zip(batch.targets_BU, batch.target_lens_B, batch.texts, strict=True):
            assert ALPHABET.decode(ids[:length].tolist()) == text


def test_cached_audio_is_the_audio(make_data):
    """16-bit recordings at the model's rate come out of the cache bit by bit."""
    plain, cached = make_data(), make_data(cache_audio=True)
    for data in (plain, cached):
        data.setup("fit")
    for a, b in zip(plain.train_dataloader(), cached.train_dataloader(), strict=True):
        assert torch.equal(a.wave_BS, b.wave_BS)


def test_a_part_from_the_beginning_of_a_recording_is_decoded_anew_when_it_is_another_part(make_data, tmp_path):
    speech_files.write_audio(tmp_path / "a.wav", 2.0)
    options = {"cache_audio": True, "cache_dir": str(tmp_path / "cache"), "train": str(tmp_path / "m.json")}
    for seconds in (1.0, 0.5, 2.0):
        line = {"audio_filepath": "a.wav", "offset": 0.0, "duration": seconds, "text": "a"}
        speech_files.write_manifest(tmp_path / "m.json", [line])
        data = make_data(**options)
        data._load(["train"], first=True)
        assert len(data.datasets["train"][0, 0].wave) == seconds * 16000


def test_an_epoch_iterated_to_its_end_is_followed_by_the_next(make_data):
    data = make_data()
    data.setup("fit")
    loader = data.train_dataloader()
    first, second = ([batch.texts for batch in loader] for _ in range(2))
    assert len(first) == len(second) == len(loader) == 3
    assert first != second
    again = data.train_dataloader()
    again.sampler.set_epoch(1)
    assert [batch.texts for batch in again] == second


def test_batches_do_not_depend_on_the_number_of_workers(make_data):
    heard = []
    for num_workers in (0, 1, 2):
        noise = {"noise": {"prob": 0.7}, "speed": {"min": 0.8, "max": 1.2}}
        data = make_data(seed=3, batch_size=2, augment=noise, num_workers=num_workers)
        data.setup("fit")
        loader = data.train_dataloader()
        heard.append([batch.wave_BS for _ in range(2) for batch in loader])  # two epochs
        data.teardown()
    first, *others = heard
    assert all(len(waves) == len(first) for waves in others)
    assert all(torch.equal(a, b) for waves in others for a, b in zip(first, waves, strict=True))


def test_a_number_of_workers_that_is_not_said_is_shared_by_the_devices(make_data, monkeypatch):
    asked = []
    monkeypatch.setattr(module_file, "fitting_workers", lambda devices: asked.append(devices) or 0)
    data = make_data(num_workers=None)
    data.setup("fit")
    data.train_dataloader()
    data.trainer = SimpleNamespace(
        **{"num_devices": 4, "world_size": 1, "global_rank": 0},
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    data.val_dataloader()
    assert asked == [1, 4]


@pytest.mark.parametrize("where", ["cache", "worker"])
def test_audio_that_breaks_off_is_named_with_its_line(manifests, tmp_path, where):
    """Its header is good, so only decoding finds it."""
    audio = speech_files.write_audio(tmp_path / "a.flac", 2.0)
    audio.write_bytes(audio.read_bytes()[:20000])
    bad = speech_files.write_manifest(
        tmp_path / "bad.json", [{"audio_filepath": str(audio), "duration": 2.0, "text": "seven"}]
    )
    cfg = {"name": "manifest", "train": str(bad), "dev": str(manifests["dev"]), "batch_size": 1}
    cfg |= {"cache_audio": True} if where == "cache" else {"num_workers": 1}
    data = SpeechDataModule(DataConfig.from_mapping(cfg), ALPHABET)

    def load():
        data.setup("fit")
        list(data.train_dataloader())

    with pytest.raises(DataError, match=rf"{bad}:1: audio file .*a\.flac is corrupt"):
        load()


def test_every_dev_utterance_is_evaluated_once(make_data, tmp_path):
    listener = fit(make_data(), tmp_path, max_epochs=1, num_sanity_val_steps=0)
    assert sorted(listener.evaluated) == sorted(f"zero {speech_files.DIGITS[i]}" for i in range(DEV))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_accumulation_makes_a_step_of_the_same_utterances(make_data, tmp_path, accumulate):
    whole = fit(make_data(batch_size=4), tmp_path, limit_val_batches=0).heard
    split = fit(
        make_data(batch_size=4 // accumulate), tmp_path, limit_val_batches=0, accumulate_grad_batches=accumulate
    ).heard
    steps = [itertools.chain(*split[i : i + accumulate]) for i in range(0, len(split), accumulate)]
    assert [set(step) for step in steps] == [set(step) for step in whole]


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, id="prefetching workers")])
def test_a_run_resumed_anywhere_hears_what_the_uninterrupted_one_did(make_data, tmp_path, num_workers):
    def data():
        return make_data(batch_size=2, num_workers=num_workers)

    every_step = ModelCheckpoint(tmp_path / "steps", "{step}", every_n_train_steps=1, save_top_k=-1)
    after_validation = ModelCheckpoint(tmp_path / "validated", "{epoch}-{step}", save_top_k=-1)
    after_epoch = AtEpochEnd(tmp_path / "ended", "{epoch}-{step}", save_top_k=-1, save_on_train_epoch_end=True)
    callbacks = [every_step, after_validation, after_epoch]
    whole = fit(data(), tmp_path, callbacks, accumulate_grad_batches=2).heard
    batches_per_epoch = 6
    assert len(whole) == 3 * batches_per_epoch
    assert len({str(whole[i : i + 6]) for i in (0, 6, 12)}) == 3, "every epoch is shuffled anew"

    steps = (1, 3, 4, 6, 8) if num_workers == 0 else (2, 4)
    checkpoints = [tmp_path / "steps" / f"step={step}.ckpt" for step in steps]
    checkpoints += [tmp_path / kind / "epoch=1-step=6.ckpt" for kind in ("validated", "ended")]
    for checkpoint in checkpoints:
        done = 2 * torch.load(checkpoint)["global_step"]
        resumed = fit(data(), tmp_path, ckpt_path=checkpoint, accumulate_grad_batches=2, num_sanity_val_steps=0).heard
        assert resumed == whole[done:], checkpoint


def test_overfitting_repeats_the_same_batches(make_data, tmp_path):
    heard = fit(make_data(), tmp_path, overfit_batches=2, limit_val_batches=0).heard
    assert heard[0:2] == heard[2:4] == heard[4:6]


def test_too_few_utterances_for_a_global_batch(make_data, tmp_path):
    with pytest.raises(DataError, match=r"14 utterances, fewer than one global batch of 24 .*8 x 1 ranks x accum.* 3"):
        fit(make_data(batch_size=8), tmp_path, accumulate_grad_batches=3)


def test_a_changing_accumulation_is_refused(make_data, tmp_path):
    with pytest.raises(ConfigError, match="GradientAccumulationScheduler would change the global batch size"):
        fit(make_data(), tmp_path, [GradientAccumulationScheduler({0: 1, 1: 2})])
    ramp = solve_batch_ramp([[0, 4], [2, 8]], devices=1, per_device_batch_size=4)
    with pytest.raises(ConfigError, match="BatchRampScheduler would change the global batch size"):
        fit(make_data(), tmp_path, [BatchRampScheduler(ramp)])


def test_no_test_set(make_data):
    data = make_data()
    data.setup("test")
    with pytest.raises(ConfigError, match=r"data\.test: the corpus manifest has no test set"):
        data.test_dataloader()


def test_speed_is_drawn_by_seed_epoch_and_utterance(make_data):
    def lengths(seed: int, epoch: int, **options) -> dict[str, int]:
        data = make_data(seed=seed, augment={"speed": [0.8, 1.0, 1.25]}, **options)
        data.setup("fit")
        dataset = data.datasets["train"]
        return {dataset[epoch, i].text: len(dataset[epoch, i].wave) for i in range(len(dataset))}

    first = lengths(1, 0)
    assert first == lengths(1, 0, cache_audio=True)
    assert first != lengths(1, 1)
    assert first != lengths(2, 0)
    originals = {
        text: n
        for text, n in zip(
            first, [round(16000 * (0.2 + 0.4 * (i * 7 % TRAIN) / TRAIN)) for i in range(TRAIN)], strict=True
        )
    }
    factors = {round(originals[text] / n, 2) for text, n in first.items()}
    assert factors == {0.8, 1.0, 1.25}


def test_faster_playing_counts_in_the_check_of_lengths(manifests):
    def setup(**options) -> None:
        cfg = {"name": "manifest", **{k: str(v) for k, v in manifests.items()}, **options}
        data = SpeechDataModule(DataConfig.from_mapping(cfg), ALPHABET, samples_to_frames=lambda n: n // 300)
        data.setup("fit")

    setup()
    with pytest.raises(DataError, match="give 8 output frames"):
        setup(augment={"speed": [1.0, 1.25]})


@pytest.mark.parametrize(
    ("stage", "expected"),
    [("fit", {"train", "dev"}), ("validate", {"dev"}), ("test", set()), (None, {"train", "dev"})],
)
def test_a_stage_reads_its_sets_once(make_data, stage, expected):
    data = make_data()
    assert not data.has_test_set
    data.setup(stage)
    assert data.datasets.keys() == expected
    kept = dict(data.datasets)
    data.setup()
    assert all(data.datasets[split] is dataset for split, dataset in kept.items())


def test_a_test_set_is_read_where_there_is_one(make_data, manifests):
    for stage, expected in (("test", {"test"}), (None, {"train", "dev", "test"}), ("fit", {"train", "dev"})):
        data = make_data(test=str(manifests["dev"]))
        assert data.has_test_set
        data.setup(stage)
        assert data.datasets.keys() == expected
    data.setup("test")
    assert sum(len(batch.texts) for batch in data.test_dataloader()) == DEV


def test_the_config_is_passed_on(make_data):
    options = {"cache_audio": True, "downmix": True, "min_duration": 0.25, "max_duration": 0.5, "num_workers": 3}
    data = make_data(seed=7, eval_batch_size=2, augment={"speed": [0.9, 1.1]}, **options)
    data.setup("fit")
    train, dev = data.datasets["train"], data.datasets["dev"]
    assert (train.augment.speed_config, train.augment.seed, dev.augment) == ([0.9, 1.1], 7, None)
    for dataset in (train, dev):
        assert (dataset.downmix, dataset.sample_rate, dataset._samples is None) == (True, 16000, False)
    assert all(0.25 <= duration <= 0.5 for duration in train.durations)
    assert len(dev) == DEV, "the limits are for training"
    loaders = data.train_dataloader(), data.val_dataloader()
    assert [(loader._loader.num_workers, loader._loader.pin_memory) for loader in loaders] == [(3, False)] * 2
    sampler = loaders[0].sampler
    assert (sampler.seed, sampler.shuffle, sampler.accumulate, sampler.batch_size) == (7, True, 1, 4)
    assert (sampler.world_size, sampler.rank) == (1, 0)
    assert max(len(batch) for batch in loaders[1]._loader.batch_sampler) == 2
    inner = [loader._loader for loader in loaders]
    data.teardown()
    assert all(loader._loader is not before for loader, before in zip(loaders, inner, strict=True)), (
        "workers are let go"
    )


@pytest.mark.parametrize(
    ("given", "options", "expected"),
    [({}, {}, (4, 4)), ({}, {"eval_batch_size": 3}, (4, 3)), ({"batch_size": 9}, {}, (9, 9))],
)
def test_batch_sizes(manifests, given, options, expected):
    cfg = {"name": "manifest", **{k: str(v) for k, v in manifests.items()}, "batch_size": 4, **options}
    data = SpeechDataModule(DataConfig.from_mapping(cfg), ALPHABET, **given)
    assert (data.batch_size, data.eval_batch_size) == expected
    assert (data.sample_rate, data.seed, data.samples_to_frames) == (16000, 0, None)


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_ranks_steps_and_device_are_the_trainers(make_data, device, pinned):
    data = make_data(batch_size=2)
    data.setup("fit")
    strategy = SimpleNamespace(root_device=torch.device(device))
    data.trainer = SimpleNamespace(
        callbacks=[], accumulate_grad_batches=2, overfit_batches=0.0, world_size=2, global_rank=1, strategy=strategy
    )
    loader = data.train_dataloader()
    sampler = loader.sampler
    assert (sampler.world_size, sampler.rank, sampler.accumulate, sampler.shuffle) == (2, 1, 2, True)
    assert len(data.val_dataloader()) == 2, "of 5 utterances in batches of at most 2; one process has 3"
    assert loader._loader.pin_memory is pinned


def test_the_cache_of_a_corpus_may_begin_at_home(make_data, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(OwnManifests, "prepare", lambda self, options, cache_dir: asked.append(cache_dir))
    monkeypatch.setattr("lightning_novograd.recipes.asr.data.module.vars", lambda made: {}, raising=False)
    make_data(cache_dir="~/x").prepare_data()
    assert asked == [tmp_path / "x"]


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_set_that_is_not_there(make_data, split):
    data = make_data()
    with pytest.raises(ConfigError) as error:
        (data.val_dataloader if split == "dev" else data.test_dataloader)()
    assert (error.value.path, error.value.problem) == (f"data.{split}", f"the corpus manifest has no {split} set")


def test_checkpoints_say_how_long_the_longest_training_utterance_is(make_data):
    data = make_data()
    assert data.state_dict() == {}
    data.setup("fit")
    assert data.state_dict() == {"longest": max(data.datasets["train"].durations)}
    assert type(data).__qualname__ == "SpeechDataModule", "which is the key that Lightning saves it under"
