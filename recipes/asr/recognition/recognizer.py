"""Waveforms to texts."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.model.jasper import JasperCTC
from lightning_novograd.recipes.asr.text.decode import CTCPath, best_paths, greedy, runs

# what the Trainer's precisions mean; all others are float32. (Fabric would round the waveforms to half precision too.)
_AUTOCAST = {"bf16-mixed": torch.bfloat16, "bf16": torch.bfloat16, "16-mixed": torch.float16, "16": torch.float16}
_DTYPES = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64, "64": torch.float64}


# Log-probabilities (batch, frames, classes) and valid frames to a path for each utterance
Decoder = Callable[[Tensor, Tensor], list[CTCPath]]


class Recognizer:
    """Waveforms to texts: a trained model in eval mode, and its decoding: greedy, until `decoder` is set.

    Args:
        model: the acoustic model.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        precision: as the Trainer has it; None for float32.

    Attributes:
        decoder: None (greedy), or what finds the paths instead, a `BeamDecoder`.

    Raises:
        ConfigError: there is no such device on this machine.
    """

    def __init__(self, model: JasperCTC, device: str = "cpu", precision: Any = None) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("--device", "is cuda, but this machine has no CUDA device")
        self.alphabet = model.alphabet
        self.sample_rate = model.config.preprocessor.sample_rate
        self.decoder: Decoder | None = None
        self._dtype = _DTYPES.get(str(precision), torch.float32)
        self._model = model.eval().to(device, self._dtype)
        autocast = _AUTOCAST.get(str(precision))
        if device == "cpu" and autocast == torch.float16:
            autocast = torch.bfloat16  # as the Trainer does
        self._device = device
        self._autocast = torch.autocast(device, autocast, enabled=autocast is not None)

    @torch.inference_mode()
    def __call__(self, wave_BS: Tensor, wave_lens_B: Tensor) -> list[str]:
        """One text per waveform.

        Args:
            wave_BS: waveforms ``(batch, samples)`` at `sample_rate`, within [-1, 1].
            wave_lens_B: valid samples of each.
        """
        log_probs_BTV, lens_B = self.log_probs(wave_BS, wave_lens_B)
        if self.decoder is None:
            return greedy(log_probs_BTV, lens_B, self.alphabet)
        return [self.text(path) for path in self.decoder(log_probs_BTV, lens_B)]

    @torch.inference_mode()
    def paths(self, wave_BS: Tensor, wave_lens_B: Tensor) -> list[CTCPath]:
        """One path per waveform, whose `text` is what calling the recognizer gives."""
        log_probs_BTV, lens_B = self.log_probs(wave_BS, wave_lens_B)
        if self.decoder is None:
            return best_paths(log_probs_BTV, lens_B, self.alphabet)
        return self.decoder(log_probs_BTV, lens_B)

    @torch.inference_mode()
    def log_probs(self, wave_BS: Tensor, wave_lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities ``(batch, frames, classes)`` and valid frames of waveforms."""
        with self._autocast:
            return self._model(wave_BS.to(self._device, self._dtype), wave_lens_B.to(self._device))

    def text(self, path: CTCPath) -> str:
        """What a path collapses to."""
        return self.alphabet.decode(runs(path.ids_T, self.alphabet.blank)[:, 0].tolist())

    @property
    def frame_seconds(self) -> float:
        """From one output frame to the next: the stride of the features times those of all blocks, in s."""
        config = self._model.config
        strides = math.prod(layer.block.total_stride for layer in config.layers)
        return config.preprocessor.stride_samples * strides / self.sample_rate

    @property
    def num_parameters(self) -> int:
        """Of the model, buffers not counted."""
        return sum(parameter.numel() for parameter in self._model.parameters())
