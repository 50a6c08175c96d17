"""NeMo loads the archives that we write, and computes what our model computes."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("nemo.core", reason="needs nemo_toolkit: make test-nemo")

from conftest import GOLDEN, ROOT
from nemo.collections.asr.models import EncDecCTCModel

from lightning_novograd.config.data import load_yaml
from lightning_novograd.recipes.asr.data.audio import load_audio
from lightning_novograd.recipes.asr.model.jasper import JasperCTC
from lightning_novograd.recipes.asr.weights.nemo import load_nemo
from lightning_novograd.recipes.asr.weights.nemo_writer import write_nemo

SETTLED = 8  # passes after which BatchNorm's statistics and the weights of a new model are no longer those of the start


def trained(config: dict, wave_BS: torch.Tensor, lens_B: torch.Tensor) -> JasperCTC:
    """A model whose every weight and statistic differs from those of the start."""
    torch.manual_seed(0)
    model = JasperCTC.from_config(config).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
        for _ in range(SETTLED):
            model(wave_BS, lens_B)
    return model.eval()


@pytest.fixture(scope="module")
def waves(shared_data) -> tuple[torch.Tensor, torch.Tensor]:
    """Real speech of three lengths: a sentence, two spoken digits."""
    sentence = sorted((shared_data / "librivox").rglob("*.flac")) or sorted((shared_data / "librivox").rglob("*.wav"))
    files = [*sentence[:1], *sorted((shared_data / "fsdd" / "recordings").glob("*.wav"))[:2]]
    waves = [torch.from_numpy(load_audio(file, 16000, downmix=True))[: 16000 * 12] for file in files]
    return torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), torch.tensor(list(map(len, waves)))


def models(wave_BS: torch.Tensor, lens_B: torch.Tensor) -> dict[str, JasperCTC]:
    small = load_yaml(ROOT / "conf" / "model" / "quartznet_small.yaml")
    dense = {
        "labels": [" ", "a", "ä"],
        "preprocessor": {
            "features": 32,
            "n_window_size": 400,
            "window_size": None,
            "window_stride": 0.0125,
            "pad_to": 0,
        },
        "encoder": {
            "activation": "hardtanh",
            "jasper": [
                {"filters": 32, "kernel": 11, "stride": 2, "residual": False, "dropout": 0.2},
                {"copies": 2, "filters": 32, "kernel": 11, "repeat": 2, "residual": True, "residual_dense": True},
                {"filters": 48, "kernel": 15, "dilation": 2, "residual": False},
            ],
        },
    }
    return {
        "of NeMo's": load_nemo(GOLDEN / "models" / "quartznet_tiny.nemo"),
        "quartznet_small": trained(small, wave_BS, lens_B),
        "Jasper": trained(dense, wave_BS, lens_B),
    }


@pytest.mark.parametrize("name", ["of NeMo's", "quartznet_small", "Jasper"])
def test_nemo_restores_what_we_write_and_hears_the_same(name, waves, tmp_path):
    model, path = models(*waves)[name].eval(), Path(tmp_path / "x.nemo")
    write_nemo(model, path)
    theirs = EncDecCTCModel.restore_from(str(path), map_location="cpu").eval()
    assert list(theirs.decoder.vocabulary) == model.alphabet.labels
    with torch.no_grad():
        expected_BTV, expected_B, _ = theirs(input_signal=waves[0], input_signal_length=waves[1])
        found_BTV, found_B = model(*waves)
    assert found_B.tolist() == expected_B.tolist()
    assert found_B.min() > 10
    for found, expected, frames in zip(found_BTV, expected_BTV, found_B.tolist(), strict=True):
        torch.testing.assert_close(found[:frames], expected[:frames], atol=1e-4, rtol=0)
    assert found_BTV.std() > 0.1, "not all frames alike"
