"""Models without their Python code: torch.export here, ONNX where its packages are (`[export]`)."""

import json

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


@pytest.fixture(scope="module")
def traced(model) -> torch.export.ExportedProgram:
    """Once, for it takes a second."""
    return program_of(model)


def check(found, model: JasperCTC) -> None:
    """The same values for any number of waveforms of any length, none included."""
    for lens in ([400], [4000, 0, 123]):
        wave, lens = 0.1 * torch.randn(len(lens), max(lens)), torch.tensor(lens)
        for value, expected in zip(found(wave, lens), model.eval()(wave, lens), strict=True):
            assert torch.equal(value, expected)


@pytest.mark.slow
def test_a_program_takes_any_number_of_waveforms_of_any_length(model, traced):
    check(traced.module(), model)


def test_what_is_traced_computes_what_the_slices_of_a_batch_do(model, monkeypatch):
    """Without torch.export: the other branches of features and convolutions, over batches that are sliced."""
    monkeypatch.setattr("lightning_novograd.recipes.asr.model.features._SLICE_VALUES", 1)
    monkeypatch.setattr("lightning_novograd.recipes.asr.model.convolution._SLICE_VALUES", 1)
    wave, lens = 0.1 * torch.randn(3, 4000), torch.tensor([4000, 0, 123])
    sliced, frames = model.eval()(wave, lens)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    whole, same_frames = model(wave, lens)
    torch.testing.assert_close(whole, sliced, atol=1e-4, rtol=0)
    assert torch.equal(frames, same_frames)


@pytest.mark.slow
def test_a_program_is_written_and_reads_back(model, traced, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "program_of", lambda model: traced)
    assert write_program(model, tmp_path / "x.pt2") == 0
    about = {"model.json": ""}
    check(torch.export.load(tmp_path / "x.pt2", extra_files=about).module(), model)
    assert json.loads(about["model.json"]) == {"labels": [" ", "a", "ä"], "sample_rate": 8000}
    with pytest.raises(DataError, match=r"y\.pt2 would differ from the model: by [\d.]+ in log-probabilities"):
        write_program(JasperCTC.from_config(MODEL).eval(), tmp_path / "y.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt2"]


def test_what_computes_something_else_is_refused(model, tmp_path):
    other = JasperCTC.from_config(MODEL).eval()
    with pytest.raises(DataError, match=r"x would differ from the model: by [\d.]+ in log-probabilities"):
        program._compare(model.eval(), other, tmp_path / "x")
    assert program._compare(other, other, tmp_path / "x") == 0


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


@pytest.mark.slow
def test_onnx_computes_the_same(model, traced, tmp_path, monkeypatch):
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra [export]")
    pytest.importorskip("onnxscript", reason="needs the extra [export]")
    monkeypatch.setattr(program, "program_of", lambda model: traced)
    assert write_onnx(model, tmp_path / "x.onnx") < 1e-4
    session = runtime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["labels"]) == [" ", "a", "ä"]
    for lens in ([400], [4000, 0, 123]):
        wave, lens = 0.1 * torch.randn(len(lens), max(lens)), torch.tensor(lens)
        log_probs, frames = session.run(["log_probs", "lens"], {"wave": wave.numpy(), "wave_lens": lens.numpy()})
        expected, expected_frames = model.eval()(wave, lens)
        torch.testing.assert_close(torch.from_numpy(log_probs), expected.detach(), atol=1e-4, rtol=0)
        assert frames.tolist() == expected_frames.tolist()
