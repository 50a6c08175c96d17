"""The alphabet of a run: a list is left alone, `auto` is of the training text, of the checkpoint or of init_from."""

import logging

import pytest
from conftest import ROOT
from hydra import compose, initialize_config_module
from speech_files import write_audio, write_manifest

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.data.config import DataConfig
from lightning_novograd.recipes.asr.data.manifest import read_manifest
from lightning_novograd.recipes.asr.model.jasper import JasperCTC
from lightning_novograd.recipes.asr.text.alphabet import Alphabet
from lightning_novograd.recipes.asr.text.labels import write_labels
from lightning_novograd.recipes.asr.training.labels import with_labels
from lightning_novograd.recipes.asr.training.settings import RunSettings

BLOCK = {"filters": 8, "kernel": 11, "stride": 2, "residual": False}


def model(labels) -> JasperCTC:
    return JasperCTC.from_config({"labels": labels, "encoder": {"jasper": [BLOCK]}})


@pytest.fixture
def data(tmp_path) -> DataConfig:
    rows = [{"audio_filepath": "a.wav", "duration": 1, "text": text} for text in ("Ab c", "bA\u0308")]
    manifest = write_manifest(tmp_path / "train.json", [*rows, "no json", '{"text": 3}', "[1]", ""])
    cfg = {"name": "manifest", "train": str(manifest), "dev": "none", "normalize": {"case": "lower", "unicode": "NFC"}}
    return DataConfig.from_mapping(cfg)


@pytest.mark.parametrize("block", [{"labels": ["a"]}, {"labels": None}, {}])
def test_a_list_is_left_alone(block):
    assert with_labels(block, None) is block


def test_auto_is_the_normalized_training_text(data, caplog):
    with caplog.at_level(logging.INFO, logger="lightning_novograd"):
        found = with_labels({"labels": "auto", "encoder": 1}, data)
    assert found == {"labels": [" ", "a", "b", "c", "ä"], "encoder": 1}
    assert "5 labels, from the training text:  abcä" in caplog.text


def test_a_file_has_one_on_each_line(tmp_path):
    write_labels(tmp_path / "x.txt", [" ", "b", "a"])
    assert with_labels({"labels": str(tmp_path / "x.txt")}, None)["labels"] == [" ", "b", "a"]
    with pytest.raises(DataError, match=r"^labels auto\.txt cannot be read: No such file"):
        with_labels({"labels": "auto.txt"}, None)


def test_a_run_that_goes_on_keeps_its_alphabet(data, tmp_path):
    path = tmp_path / "last.ckpt"
    saved = {"hyper_parameters": {"model": {"labels": ["x", "a"]}}}
    assert with_labels({"labels": "auto"}, data, path, saved)["labels"] == ["x", "a"], "the file is not read again"
    for content in ({}, {"hyper_parameters": [1]}, {"hyper_parameters": {"model": 1}}):
        with pytest.raises(ConfigError, match=r"^resume_from: .*last\.ckpt is no checkpoint of train\.py: it has no"):
            with_labels({"labels": "auto"}, data, path, content)


def test_fine_tuning_keeps_an_alphabet_that_has_all_of_the_text(data):
    larger, other = [*"zyxä cba"], [*"abc "]
    assert with_labels({"labels": "auto"}, data, trained=model(larger))["labels"] == larger
    assert with_labels({"labels": "auto"}, data, trained=model(other))["labels"] == [" ", "a", "b", "c", "ä"]


def test_a_manifest_that_is_not_there(data):
    lost = DataConfig.from_mapping({"name": "manifest", "train": "lost.json", "dev": "none"})
    with pytest.raises(DataError, match=r"^manifest lost\.json cannot be read: No such file or directory$"):
        with_labels({"labels": "auto"}, lost)


def test_the_manifests_texts_are_normalized_before_they_are_checked(tmp_path):
    write_audio(tmp_path / "a.wav", 1.0)
    manifest = write_manifest(tmp_path / "m.json", [{"audio_filepath": "a.wav", "duration": 1.0, "text": "Ab"}])
    with pytest.raises(DataError, match=r"data\.normalize\.case=lower"):
        read_manifest(manifest, Alphabet("ab"))
    [utterance] = read_manifest(manifest, Alphabet("ab"), normalize=str.lower)
    assert utterance.text == "ab"


def test_what_the_readme_has_in_quotes_is_in_hydras_grammar():
    lines = [
        'model.labels=[" ","a","ä","ß"]',
        'freeze=["encoder.*"]',
        '+optim.param_groups=[{match: "model.encoder.*", lr_mult: 0.1}]',
    ]
    plain = ["data.normalize.case=lower", "data.normalize.unicode=NFC", "early_stopping.patience=5", "+optim.ema=0.999"]
    readme = (ROOT / "recipes" / "asr" / "README.md").read_text(encoding="utf-8")
    assert [line for line in (*(f"'{line}'" for line in lines), *plain) if line not in readme] == []
    with initialize_config_module("lightning_novograd.conf", version_base="1.3"):
        cfg = compose("asr", overrides=[*lines, *plain])
        assert compose("asr", overrides=["model.labels=auto"]).model.labels == "auto"
    assert list(cfg.model.labels) == [" ", "a", "ä", "ß"]
    assert JasperCTC.from_config(cfg.model).alphabet.blank == 4
    settings = RunSettings.read(cfg, "")
    assert settings.freeze == ["encoder.*"]
    assert DataConfig.from_mapping(settings.data).normalize("A\u0308") == "ä"
    assert settings.optim["param_groups"] == [{"match": "model.encoder.*", "lr_mult": 0.1}]
