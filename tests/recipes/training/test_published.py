"""The experiments that repeat published recipes: their numbers, written here once more, and where they are shown."""

import logging

import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from lightning_novograd import parse_optim
from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.data.config import DataConfig
from lightning_novograd.recipes.asr.data.corpora.librispeech import TRAIN
from lightning_novograd.recipes.asr.model.jasper import JasperCTC
from lightning_novograd.recipes.asr.training.run import report
from lightning_novograd.recipes.asr.training.settings import RunSettings, plan_batches, published_results
from lightning_novograd.recipes.common.batches.optim import planned_optim

CONTINUOUS, DISCRETE = {"min": 0.85, "max": 1.15}, [0.9, 1.0, 1.1]
# model, optim; epochs, batch per device, accumulation; SpecAugment's (masks, widths), speed, EMA;
# WER in % of dev-clean, dev-other, test-clean, test-other
PUBLISHED = {
    "quartznet15x5_librispeech": (
        ("quartznet_15x5", "nvidia/quartznet_15x5"),
        (260, 72, 2),
        ((2, 15, 2, 55), CONTINUOUS, 0.999),
        (3.47, 10.84, 3.69, 10.69),
    ),
    "jasper10x5dr_librispeech": (
        ("jasper_10x5dr", "nvidia/jasper_10x5dr"),
        (440, 64, 1),
        ((2, 20, 2, 75), CONTINUOUS, 0.999),
        (3.20, 9.78, 3.41, 9.71),
    ),
    **{
        f"jasper10x5dr_b{batch}": (
            ("jasper_10x5dr", f"paper/jasper_{batch}"),
            (400, 64, accumulation),
            ((0, 20, 0, 75), DISCRETE, None),
            wer,
        )
        for batch, accumulation, wer in [
            ("512", 1, (3.58, 11.30, 3.85, 11.29)),
            ("4k", 8, (3.66, 11.67, 3.92, 11.68)),
            ("8k", 16, (3.69, 11.76, 3.96, 11.75)),
            ("16k", 32, (3.67, 11.03, 3.94, 11.19)),
            ("32k", 64, (4.01, 11.73, 4.14, 11.89)),
        ]
    },
}
# global batch, accumulation; LR, warmup and EMA: nobody's numbers, by the rule in the files
UNPUBLISHED = {
    "quartznet15x5_b512": (512, 1, 0.0066667, 0.00769231, 0.99956),
    "quartznet15x5_b4k": (4096, 8, 0.0188562, 0.05, 0.99645),
    "quartznet15x5_b8k": (8192, 16, 0.0266667, 0.05, 0.99291),
    "quartznet15x5_b16k": (16384, 32, 0.0377124, 0.05, 0.98587),
    "quartznet15x5_b32k": (32768, 64, 0.0533333, 0.08, 0.97194),
}
SETS = ("dev-clean", "dev-other", "test-clean", "test-other")


@pytest.fixture(scope="module")
def composed():
    """Options of an experiment, and what it is made of."""
    with initialize_config_module("lightning_novograd.conf", version_base="1.3"):
        yield lambda *overrides: compose("asr", overrides=list(overrides))


def test_every_experiment_on_librispeech_is_in_the_table():
    folder = ROOT / "conf" / "experiment"
    names = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob("**/*.yaml")}
    assert names - {"fsdd_novograd"} == set(PUBLISHED) | set(UNPUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_are_the_published_ones(composed, name):
    (model, optim), (epochs, batch, accumulation), (masks, speed, ema), wer = PUBLISHED[name]
    cfg = composed(f"experiment={name}")
    settings = RunSettings.read(cfg, "")

    plan = plan_batches(settings, settings.data["batch_size"])
    assert (plan.per_device_batch_size, plan.devices, plan.num_nodes) == (batch, 8, 1)
    assert plan.accumulate_grad_batches == accumulation
    # with 281241 utterances in 32768s the paper has nine updates an epoch
    assert settings.large_batch.last == ("keep" if name == "jasper10x5dr_b32k" else "drop")
    trainer = settings.trainer
    assert (trainer["max_epochs"], trainer["strategy"], trainer["precision"]) == (epochs, "ddp", "bf16-mixed")

    with torch.device("meta"):
        built = JasperCTC.from_config(settings.model)
    augment = built.config.spec_augment
    assert (augment.freq_masks, augment.freq_width, augment.time_masks, augment.time_width) == masks
    assert augment.rect_masks == 0
    features = built.config.preprocessor
    assert (features.features, features.window_size, features.window_stride) == (64, 0.02, 0.01)
    assert (features.n_fft, features.dither) == (512, 1e-5)
    assert cfg.model.encoder == OmegaConf.load(ROOT / "conf" / "model" / f"{model}.yaml").encoder

    block = OmegaConf.to_container(cfg.optim)
    assert block.pop("ema", None) == ema
    assert block == OmegaConf.load(ROOT / "conf" / "optim" / f"{optim}.yaml"), "the preset has a test of its own"
    parsed = parse_optim(cfg.optim)
    assert (None if parsed.ema is None else parsed.ema.decay) == ema

    data = DataConfig.from_mapping(settings.data)
    assert (data.augment.speed, data.augment.noise) == (speed, None)
    assert data.name == "librispeech"
    assert (data.corpus.train, data.corpus.dev, data.corpus.test) == (TRAIN, "dev-clean", "test-clean")
    assert data.loading.max_duration == 16.7

    assert settings.published.wer == pytest.approx({part: value / 100 for part, value in zip(SETS, wer, strict=True)})
    assert published_results(settings)["published"]["test_wer"] == pytest.approx(wer[2] / 100)
    assert settings.checkpoint.test == ("last" if "_b" in name else "best")


@pytest.mark.parametrize("name", UNPUBLISHED)
def test_other_batches_are_the_published_recipe_but_for_what_the_batch_changes(composed, name):
    size, accumulation, lr, warmup, ema = UNPUBLISHED[name]
    cfg, published = composed(f"experiment={name}"), composed("experiment=quartznet15x5_librispeech")
    settings = RunSettings.read(cfg, "")
    plan = plan_batches(settings, settings.data["batch_size"])
    assert (plan.global_batch_size, plan.per_device_batch_size, plan.devices) == (size, 64, 8)
    assert plan.accumulate_grad_batches == accumulation
    block, planned = planned_optim(settings, plan)
    assert planned.lr == pytest.approx(lr, rel=1e-5)
    assert parse_optim(block).sched is not None
    assert block["sched"]["warmup_ratio"] == warmup
    assert block["ema"] == ema == pytest.approx(0.999 ** (size / 1152), abs=1e-5)
    block["sched"]["warmup_ratio"] = published.optim.sched.warmup_ratio
    assert {**block, "lr": 0.01, "ema": 0.999} == published.optim
    assert (cfg.model, cfg.data, cfg.trainer) == (published.model, published.data, published.trainer)
    assert settings.published is None


def test_a_run_shows_the_published_wer_of_the_sets_that_it_measured(composed, tmp_path, caplog):
    cfg = composed("experiment=quartznet15x5_librispeech", "data.test=test-other")
    published = published_results(RunSettings.read(cfg, ""))
    assert published["published"] == {
        "source": "NVIDIA DeepLearningExamples, QuartzNet 15x5, greedy",
        "dev_wer": 0.0347,
        "test_wer": 0.1069,
        "wer": dict(zip(SETS, (0.0347, 0.1084, 0.0369, 0.1069), strict=True)),
    }
    counts = {"epochs": 1, "optimizer_steps": 1, "global_batch_size": 8, "utt_per_s": 1.0, "wall_s": 1.0}
    rates = {"dev_wer": 0.5, "dev_cer": 0.25, "test_wer": 0.0469, "test_cer": 0.02}
    with caplog.at_level(logging.INFO):
        report({**counts, **rates, **published}, tmp_path)
    source = published["published"]["source"]
    assert caplog.messages[-2:] == [
        f"dev  WER  50.00 %   CER  25.00 %   published WER 3.47 % ({source})",
        f"test WER   4.69 %   CER   2.00 %   published WER 10.69 % ({source})",
    ]


def test_data_of_ones_own_has_no_published_wer(composed):
    overrides = ("experiment=quartznet15x5_librispeech", "data=manifest", "data.train=a.json", "data.dev=b.json")
    published = published_results(RunSettings.read(composed(*overrides), ""))["published"]
    assert published.keys() == {"source", "wer"}
    assert published_results(RunSettings.read(composed(), "")) == {}


@pytest.mark.parametrize("wer", [3.47, -0.1, "3 %", True, None])
def test_error_rates_are_fractions(composed, wer):
    cfg = OmegaConf.merge(composed(), {"published": {"source": "x", "wer": {"dev-clean": wer}}})
    with pytest.raises(ConfigError, match=r"^published\.wer\.dev-clean: must be a fraction from 0 to 1, not "):
        RunSettings.read(cfg, "")
