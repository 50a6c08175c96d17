"""The data group of the config: what is wrong in it is named by its full path."""

import pytest
from omegaconf import OmegaConf

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.data.config import AugmentConfig, DataConfig, LoadingConfig
from lightning_novograd.recipes.asr.data.corpora import available_corpora
from lightning_novograd.recipes.asr.data.corpora.manifest import ManifestOptions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"name": None}, f"data.name: is missing: one of {', '.join(available_corpora())}", id="no name"),
        pytest.param({"name": "manifst"}, "data.name: unknown corpus 'manifst'; did you mean 'manifest'?", id="corpus"),
        pytest.param({"train": None}, "data.train: is missing: give the path of a manifest", id="required"),
        pytest.param(
            {"root": "x"}, "data.root: unknown key. Allowed: augment, batch_seconds,", id="other corpus's key"
        ),
        pytest.param({"batchsize": 2}, "data.batchsize: unknown key; did you mean 'batch_size'?", id="misspelt"),
        pytest.param({"batch_size": 0}, "data.batch_size: must be at least 1, not 0", id="range"),
        pytest.param({"num_workers": "two"}, "data.num_workers: must be a whole number or null, not 'two'", id="type"),
        pytest.param(
            {"augment": {"speeds": [1]}}, "data.augment.speeds: unknown key; did you mean 'speed'?", id="augment"
        ),
        pytest.param(
            {"normalize": {"case": "title"}},
            "data.normalize.case: 'title' is unknown. Allowed: lower, null, upper",
            id="case",
        ),
        pytest.param({"normalize": {"form": 1}}, "data.normalize.form: unknown key", id="normalize"),
        pytest.param({"augment": {"speed": [9]}}, "data.augment.speed: must be a list of factors", id="absurd speed"),
        pytest.param(
            {"min_duration": 2, "max_duration": 1}, "data.min_duration: 2 exceeds max_duration 1", id="durations"
        ),
    ],
)
@pytest.mark.parametrize("kind", [dict, OmegaConf.create])
def test_bad_config(kind, change, message):
    cfg = kind({"name": "manifest", "train": "a.json", "dev": "b.json", **change})
    with pytest.raises(ConfigError) as error:
        DataConfig.from_mapping(cfg)
    assert message in str(error.value)


def test_every_key_goes_to_its_part():
    cfg = {"name": "manifest", "train": "a", "dev": "b", "batch_size": 3, "min_duration": 2, "max_duration": 2}
    config = DataConfig.from_mapping({**cfg, "augment": {"speed": [0.9]}})
    assert (config.name, config.corpus) == ("manifest", ManifestOptions(train="a", dev="b"))
    assert config.loading == LoadingConfig(batch_size=3, min_duration=2.0, max_duration=2.0)
    assert config.augment == AugmentConfig(speed=[0.9])
    assert DataConfig.from_mapping({**cfg, "normalize": {"case": "lower"}}).normalize("Ab") == "ab"
    assert DataConfig.from_mapping({**cfg, "normalize": None}).normalize("Ab") == "Ab"
    for nothing in ({}, {"augment": None}, {"augment": {}}):
        assert DataConfig.from_mapping({**cfg, **nothing}).augment == AugmentConfig()


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"name": "manifst"}, "d.name"),
        ({"name": 3}, "d.name"),
        ({"batchsize": 2}, "d.batchsize"),
        ({"batch_size": 0}, "d.batch_size"),
        ({"train": None}, "d.train"),
        ({"augment": {"speeds": 2}}, "d.augment.speeds"),
        ({"augment": 3}, "d.augment"),
    ],
)
def test_errors_begin_where_the_block_stands(change, path):
    with pytest.raises(ConfigError) as error:
        DataConfig.from_mapping({"name": "manifest", "train": "a", "dev": "b", **change}, "d")
    assert error.value.path == path


def test_all_keys_are_allowed():
    with pytest.raises(ConfigError) as error:
        DataConfig.from_mapping({"name": "manifest", "x": 1})
    assert error.value.problem == (
        "unknown key. Allowed: augment, batch_seconds, batch_size, bucket_steps, cache_audio, cache_dir, dev, downmix, "
        "eval_batch_size, max_duration, min_duration, name, normalize, num_workers, test, train"
    )
