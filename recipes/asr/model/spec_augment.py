"""SpecAugment and cutout: random parts of the features set to zero in training."""

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.common.section import Section, key


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecAugmentConfig(Section):
    """Arguments of :class:`SpecAugment`; names are NeMo's. Without masks (the default) it does nothing.

    Args:
        freq_masks: bands of features cut from each utterance.
        freq_width: largest width of a band, in features.
        time_masks: stretches of frames cut from each utterance.
        time_width: largest length of a stretch, in frames, or as a fraction (0 to 1) of the utterance.
        rect_masks: rectangles cut from each utterance (cutout).
        rect_freq: largest height of a rectangle, in features.
        rect_time: largest length of a rectangle, in frames.
    """

    freq_masks: int = key(0, low=0, high=1000)
    freq_width: int = key(10, low=0)
    time_masks: int = key(0, low=0, high=1000)
    time_width: int | float = key(10, low=0)
    rect_masks: int = key(0, low=0, high=1000)
    rect_freq: int = key(20, low=0)
    rect_time: int = key(5, low=0)

    fixed: ClassVar[dict[str, Any]] = {"mask_value": 0.0, "rng": None, "use_numba_kernel": True}

    def check(self) -> None:
        """A fraction is at most 1."""
        if isinstance(self.time_width, float) and self.time_width > 1:
            raise ConfigError(
                "time_width", f"{self.time_width} is neither a whole number of frames nor a fraction up to 1"
            )


class SpecAugment(nn.Module):
    """Set random bands, stretches and rectangles of the features to zero, in training only.

    For each mask of largest width W over n positions: start ~ U{0..n-W}, width ~ U{0..W}, drawn for each utterance.
    Frames are counted within the utterance's own length. torch's generator of the features' device draws, so
    ``torch.manual_seed`` repeats it; all masks of a batch are made at once, without a host sync.

    Args:
        config: see :class:`SpecAugmentConfig`.

    Example:
        >>> augment = SpecAugment(SpecAugmentConfig(freq_masks=2, freq_width=15, time_masks=2, time_width=55))
        >>> augment(torch.randn(1, 64, 400), torch.tensor([400])).shape
        torch.Size([1, 64, 400])

    Source: SpecAugment (arXiv:1904.08779), cutout (arXiv:1708.04552). As in NeMo, except that its random numbers
    come from Python, its rectangles may start in the padding, and it fails on features smaller than a mask.
    """

    def __init__(self, config: SpecAugmentConfig | None = None) -> None:
        super().__init__()
        self.config = config or SpecAugmentConfig()

    @torch.no_grad()
    def forward(self, x_BCT: Tensor, lens_B: Tensor) -> Tensor:
        """Augmented copy of features ``(batch, features, frames)``; `x_BCT` itself outside of training."""
        c = self.config
        if not self.training or not (c.freq_masks or c.time_masks or c.rect_masks):
            return x_BCT
        _, features, frames = x_BCT.shape
        all_features_B = torch.full_like(lens_B, features)
        keep_BCT = torch.ones_like(x_BCT, dtype=torch.bool)
        if c.freq_masks:
            keep_BCT &= ~_spans(all_features_B, features, c.freq_masks, c.freq_width).any(1).unsqueeze(2)
        if c.time_masks:
            width = c.time_width
            width_B = (lens_B * width).long().clamp(min=1) if isinstance(width, float) else width
            keep_BCT &= ~_spans(lens_B, frames, c.time_masks, width_B).any(1).unsqueeze(1)
        if c.rect_masks:
            high_BMC = _spans(all_features_B, features, c.rect_masks, c.rect_freq)
            long_BMT = _spans(lens_B, frames, c.rect_masks, c.rect_time)
            keep_BCT &= ~(high_BMC.unsqueeze(3) & long_BMT.unsqueeze(2)).any(1)
        return x_BCT.masked_fill(~keep_BCT, 0.0)


def _spans(sizes_B: Tensor, size: int, masks: int, width: Tensor | int) -> Tensor:
    """Bool ``(batch, masks, size)``: random spans of up to `width` positions within the first `sizes_B`."""
    width_B1 = sizes_B.clamp(max=width).unsqueeze(1)
    u_2BM = torch.rand(2, len(sizes_B), masks, device=sizes_B.device)
    start_BM1 = (u_2BM[0] * (sizes_B.unsqueeze(1) - width_B1 + 1)).long().unsqueeze(2)
    length_BM1 = (u_2BM[1] * (width_B1 + 1)).long().unsqueeze(2)
    at = torch.arange(size, device=sizes_B.device)
    return (at >= start_BM1) & (at < start_BM1 + length_BM1)
