"""`.nemo` archives of ours: the same model again, NeMo's words, the same bytes each time. NeMo itself: tests/nemo."""

import tarfile
from dataclasses import replace

import pytest
import torch
import yaml
from conftest import GOLDEN, ROOT

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.model.jasper import JasperCTC, ModelConfig
from lightning_novograd.recipes.asr.weights.nemo import NemoArchive, load_nemo
from lightning_novograd.recipes.asr.weights.nemo_writer import nemo_config, write_nemo

BLOCK = {"filters": 8, "kernel": 11, "repeat": 2, "separable": True, "residual": True, "dropout": 0.1}
MODEL = {
    "labels": [" ", "a", "ä"],
    "preprocessor": {"features": 8, "n_window_size": 320, "window_stride": 0.02, "normalize": None, "pad_to": 0},
    "spec_augment": {"time_masks": 2, "time_width": 0.1},
    "encoder": {
        "activation": "hardtanh",
        "jasper": [
            {"filters": 8, "kernel": 11, "stride": 2, "residual": True, "residual_mode": "stride_add"},
            {**BLOCK, "copies": 2, "heads": 2},
            {**BLOCK, "filters": 12, "stride": 1, "dilation": 2, "residual": False},
        ],
    },
}


def structure(config: ModelConfig) -> tuple:
    """Everything of a config but how it was written down."""
    return config.alphabet, config.preprocessor, config.spec_augment, config.layers, config.encoder.activation


@pytest.mark.parametrize("name", ["quartznet_tiny", "jasper_tiny_dr"])
def test_an_archive_of_nemos_is_written_again(name, tmp_path):
    model = load_nemo(GOLDEN / "models" / f"{name}.nemo")
    write_nemo(model, tmp_path / "x.nemo")
    again = load_nemo(tmp_path / "x.nemo")
    assert structure(again.config) == structure(model.config)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.nemo"]


def test_every_key_of_a_config_gets_there(tmp_path):
    config = JasperCTC.from_config(MODEL).config
    write_nemo(JasperCTC(config), tmp_path / "x.nemo")
    again = load_nemo(tmp_path / "x.nemo").config
    assert [layer.block for layer in again.layers] == [replace(layer.block, copies=1) for layer in config.layers]
    assert (again.alphabet, again.spec_augment) == (config.alphabet, config.spec_augment)
    assert again.encoder.activation == "hardtanh"
    # what was given in samples is not given in seconds too
    assert again.preprocessor == replace(config.preprocessor, window_size=None)


def test_what_nemo_wants_to_see(tmp_path):
    config = nemo_config(JasperCTC.from_config(MODEL).config)
    assert config["target"] == "nemo.collections.asr.models.ctc_models.EncDecCTCModel"
    assert config["encoder"]["_target_"] == "nemo.collections.asr.modules.ConvASREncoder"
    window = config["preprocessor"]
    assert (window["n_window_size"], window["window_size"]) == (320, None), "NeMo refuses seconds and samples"
    assert (window["n_window_stride"], window["window_stride"]) == (None, 0.02)
    blocks = config["encoder"]["jasper"]
    assert len(blocks) == 4
    assert (blocks[1]["kernel"], blocks[3]["dilation"], "copies" in blocks[1]) == ([11], [2], False)
    assert (config["decoder"]["num_classes"], config["decoder"]["vocabulary"]) == (3, [" ", "a", "ä"])


def test_the_bytes_are_the_same_each_time_and_say_nothing_of_the_machine(tmp_path):
    model = JasperCTC.from_config(MODEL)
    for name in ("a.nemo", "b.nemo"):
        write_nemo(model, tmp_path / name)
    assert (tmp_path / "a.nemo").read_bytes() == (tmp_path / "b.nemo").read_bytes()
    with tarfile.open(tmp_path / "a.nemo") as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == ["./model_config.yaml", "./model_weights.ckpt"]
    assert {(member.mtime, member.uid, member.uname, member.mode) for member in members} == {(0, 0, "", 0o644)}


def test_a_part_of_a_larger_storage_does_not_take_all_of_it_along(tmp_path):
    model = JasperCTC.from_config(MODEL)
    write_nemo(model, tmp_path / "a.nemo")
    with torch.no_grad():
        weight = model.decoder.decoder_layers[0].weight
        weight.data = torch.cat([weight.data, torch.zeros(100_000, *weight.shape[1:])])[: len(weight)]
    write_nemo(model, tmp_path / "b.nemo")
    assert (tmp_path / "a.nemo").read_bytes() == (tmp_path / "b.nemo").read_bytes()


def test_where_it_cannot_be_written_nothing_is(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        write_nemo(JasperCTC.from_config(MODEL), tmp_path / "lost" / "x.nemo")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "model").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_is_the_same_model_in_nemos_words(path):
    config = ModelConfig.read(yaml.safe_load(path.read_text()))
    archive = NemoArchive(path, nemo_config(config), {})
    again = ModelConfig.read(archive.model_config())
    assert [layer.in_channels for layer in again.layers] == [layer.in_channels for layer in config.layers]
    assert [layer.residual_channels for layer in again.layers] == [layer.residual_channels for layer in config.layers]
    assert (again.alphabet, again.preprocessor) == (config.alphabet, config.preprocessor)
