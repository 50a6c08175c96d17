"""Waveforms to texts."""

from typing import Any

import torch
from torch import Tensor

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.model.jasper import JasperCTC
from lightning_novograd.recipes.asr.text.decode import greedy

# what the Trainer's precisions mean; all others are float32. (Fabric would round the waveforms to half precision too.)
_AUTOCAST = {"bf16-mixed": torch.bfloat16, "bf16": torch.bfloat16, "16-mixed": torch.float16, "16": torch.float16}
_DTYPES = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64, "64": torch.float64}


class Recognizer:
    """Waveforms to texts: a trained model in eval mode, and greedy decoding.

    Args:
        model: the acoustic model.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        precision: as the Trainer has it; None for float32.

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
        with self._autocast:
            log_probs_BTV, lens_B = self._model(wave_BS.to(self._device, self._dtype), wave_lens_B.to(self._device))
        return greedy(log_probs_BTV, lens_B, self.alphabet)
