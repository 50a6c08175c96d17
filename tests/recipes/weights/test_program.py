"""Models without their Python code: torch.export here, ONNX where its packages are (`[export]`)."""

import json
import logging

import pytest
import torch

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.model.jasper import JasperCTC
from lightning_novograd.recipes.asr.weights import program
from lightning_novograd.recipes.asr.weights.program import program_of, write_onnx, write_program

MODEL = {
    "labels": [" ", "a", "ä"],
    "preprocessor": {"features": 8, "sample_rate": 8000},
    "encoder": {
        "jasper": [
            {"filters": 8, "kernel": 5, "stride": 2, "separable": True, "residual": False},
            {"filters": 8, "kernel": 5, "separable": True, "residual": True, "dropout": 0.5},
        ]
    },
}


@pytest.fixture(scope="module")
def model() -> JasperCTC:
    torch.manual_seed(0)
    model = JasperCTC.from_config(MODEL)
    with torch.no_grad():
        for _ in range(3):  # BatchNorm's statistics are not those of the start
            model(0.1 * torch.randn(4, 8000), torch.full((4,), 8000))
    return model


@pytest.fixture(scope="module", autouse=True)
def traced(model):
    """Once, for it takes a second."""
    traced, trace = program_of(model), program.program_of
    program.program_of = lambda model: traced
    yield
    program.program_of = trace


def test_a_program_reads_back_and_takes_any_number_of_waveforms_of_any_length(model, tmp_path):
    assert write_program(model, tmp_path / "x.pt2") == 0
    about = {"model.json": ""}
    loaded = torch.export.load(tmp_path / "x.pt2", extra_files=about).module()
    assert json.loads(about["model.json"]) == {"labels": [" ", "a", "ä"], "sample_rate": 8000}
    for lens in ([400], [4000, 0, 123]):
        wave, lens = 0.1 * torch.randn(len(lens), max(lens)), torch.tensor(lens)
        for found, expected in zip(loaded(wave, lens), model.eval()(wave, lens), strict=True):
            assert torch.equal(found, expected)


def test_what_computes_something_else_is_not_written(tmp_path):
    with pytest.raises(DataError, match=r"x\.pt2 would differ from the model: by [\d.]+ in log-probabilities"):
        write_program(JasperCTC.from_config(MODEL).eval(), tmp_path / "x.pt2")
    assert not list(tmp_path.iterdir())


def test_weights_that_are_no_numbers_are_not_written(tmp_path):
    broken = JasperCTC.from_config(MODEL).eval()
    broken.decoder.decoder_layers[0].bias.data[0] = torch.nan
    with pytest.raises(DataError, match="by nan in log-probabilities"):
        program._compare(broken, broken, tmp_path / "x")


def test_onnx_says_what_it_needs(model, tmp_path, monkeypatch):
    monkeypatch.setattr(program.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ConfigError) as error:
        write_onnx(model, tmp_path / "x.onnx")
    assert str(error.value) == "--format: onnx needs onnxscript: pip install 'lightning-novograd[export]'"
    assert not list(tmp_path.iterdir())


def test_onnx_computes_the_same(model, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra [export]")
    pytest.importorskip("onnxscript", reason="needs the extra [export]")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    assert write_onnx(model, tmp_path / "x.onnx") < 1e-4
    session = runtime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["labels"]) == [" ", "a", "ä"]
    for lens in ([400], [4000, 0, 123]):
        wave, lens = 0.1 * torch.randn(len(lens), max(lens)), torch.tensor(lens)
        log_probs, frames = session.run(["log_probs", "lens"], {"wave": wave.numpy(), "wave_lens": lens.numpy()})
        expected, expected_frames = model.eval()(wave, lens)
        torch.testing.assert_close(torch.from_numpy(log_probs), expected.detach(), atol=1e-4, rtol=0)
        assert frames.tolist() == expected_frames.tolist()
