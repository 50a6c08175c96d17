"""The decoder: from the encoder's channels to log-probabilities of the characters and the blank."""

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_novograd.recipes.asr.model.convolution import INITIALIZERS, initialize_convolutions
from lightning_novograd.recipes.common.section import Section, key


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(Section):
    """NeMo's ``decoder`` block; whatever is left out follows from the encoder and the labels.

    Args:
        feat_in: channels of the encoder's output.
        num_classes: number of labels, without the blank.
        vocabulary: the labels once more.
        init_mode: of the weight.
    """

    feat_in: int | None = key(None, low=1)
    num_classes: int | None = key(None, low=-1)
    vocabulary: list | tuple | None = None
    init_mode: str | None = key("xavier_uniform", allowed=list(INITIALIZERS))

    fixed: ClassVar[dict[str, Any]] = {"add_blank": True}


class ConvDecoder(nn.Module):
    """A 1x1 convolution to the classes, and log-softmax."""

    def __init__(self, config: DecoderConfig, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.decoder_layers = nn.Sequential(nn.Conv1d(in_channels, num_classes, 1))
        initialize_convolutions(self, config.init_mode)

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Log-probabilities ``(batch, frames, classes)``, float32 where the layers compute in half precision."""
        logits_BTV = self.decoder_layers(x_BCT).transpose(1, 2)
        return logits_BTV.log_softmax(dim=-1, dtype=torch.promote_types(logits_BTV.dtype, torch.float32))
