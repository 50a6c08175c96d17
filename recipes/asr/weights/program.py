"""A model as a program without its Python code: for torch.export (``.pt2``) and ONNX.

Both take waveforms and give log-probabilities: the features are inside.
"""

import importlib.util
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_novograd.commands.output import whole_file
from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.model.jasper import JasperCTC

INPUTS = ("wave", "wave_lens")
OUTPUTS = ("log_probs", "lens")
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# of the largest log-probability: another order of the same sums in float32
TOLERANCE = 1e-3


def program_of(model: JasperCTC) -> torch.export.ExportedProgram:
    """The forward pass in eval mode, for any number of waveforms of any length.

    Args:
        model: on the CPU.
    """
    second = model.config.preprocessor.sample_rate
    free = torch.export.Dim.DYNAMIC  # dimensions with a name are solved for, and torch 2.13 finds no solution
    with warnings.catch_warnings(), torch.no_grad():  # else a program where gradients are switched off has no types
        warnings.simplefilter("ignore")  # torch's, of torch's own doing
        return torch.export.export(
            model.eval(),
            (torch.zeros(2, second), torch.tensor([second, second])),
            dynamic_shapes=({0: free, 1: free}, {0: free}),
            strict=False,
        )


def write_program(model: JasperCTC, path: Path) -> float:
    """Write a model for ``torch.export.load``, read it again and compare.

    The file holds labels and sample rate as the extra file ``model.json``.

    Args:
        model: with the weights.
        path: the file; torch wants the suffix ``.pt2``.

    Returns:
        The largest difference of a log-probability, on noise of other lengths than it was traced with.

    Raises:
        ConfigError: the file cannot be written.
        DataError: what was written computes something else.
    """
    with whole_file(path) as partial:
        torch.export.save(program_of(model), partial, extra_files={"model.json": json.dumps(_about(model))})
        loaded = torch.export.load(partial).module()
        return _compare(model, lambda wave_BS, lens_B: loaded(wave_BS, lens_B), path)


def write_onnx(model: JasperCTC, path: Path) -> float:
    """Write a model as ONNX, run it with onnxruntime and compare.

    Inputs ``wave`` (float32, batch x samples) and ``wave_lens`` (int64, batch); outputs ``log_probs`` (float32, batch
    x frames x classes, the blank last) and ``lens`` (valid frames). Labels and sample rate are in its metadata.

    Args:
        model: with the weights.
        path: the file.

    Returns:
        The largest difference of a log-probability, on noise of other lengths than it was traced with.

    Raises:
        ConfigError: a package is missing, or the file cannot be written.
        DataError: what was written computes something else.
    """
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        problem = f"needs {', '.join(missing)}: pip install 'lightning-novograd[export]'"
        raise ConfigError("--format", f"onnx {problem}")
    import onnxruntime

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of operators of torchvision
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = torch.onnx.export(
            program_of(model), (), dynamo=True, verbose=False, input_names=INPUTS, output_names=OUTPUTS
        )
    assert written is not None
    for name, value in _about(model).items():
        written.model.metadata_props[name] = json.dumps(value)
    with whole_file(path) as partial:
        written.save(partial)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(partial, options, providers=["CPUExecutionProvider"])

        def run(wave_BS: Tensor, lens_B: Tensor) -> list[Tensor]:
            inputs = dict(zip(INPUTS, (wave_BS.numpy(), lens_B.numpy()), strict=True))
            return [torch.from_numpy(output) for output in session.run(list(OUTPUTS), inputs)]

        return _compare(model, run, path)


def _about(model: JasperCTC) -> dict[str, Any]:
    return {"labels": model.alphabet.labels, "sample_rate": model.config.preprocessor.sample_rate}


@torch.no_grad()
def _compare(model: JasperCTC, other: Any, path: Path) -> float:
    """The largest difference of a log-probability within the utterances, for 1 and 3 waveforms."""
    second = model.config.preprocessor.sample_rate
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for seconds in ([1.3], [0.7, 2.0, 1.5]):
        lens_B = torch.tensor([int(second * s) for s in seconds])
        wave_BS = 0.1 * torch.randn(len(seconds), int(lens_B.max()), generator=generator)
        expected_BTV, frames_B = model(wave_BS, lens_B)
        found_BTV, found_B = other(wave_BS, lens_B)
        valid_BT = torch.arange(expected_BTV.shape[1]) < frames_B.unsqueeze(1)
        difference = (expected_BTV - found_BTV)[valid_BT].abs().max().item()
        if not torch.equal(frames_B, found_B) or not difference <= TOLERANCE * expected_BTV.abs().max().item():
            raise DataError(f"{path} would differ from the model: by {difference:g} in log-probabilities")
        largest = max(largest, difference)
    return largest
