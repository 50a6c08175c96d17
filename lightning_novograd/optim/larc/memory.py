"""Memory for LARC's temporaries, kept between steps: on a CPU fresh memory costs more than the arithmetic."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_novograd.optim.norms import is_sharded

_ALIGNMENT = 16  # elements


class Scratch:
    """Tensors for the time of a step; on a CPU in the same memory at every step."""

    def __init__(self) -> None:
        self._flat: dict[torch.dtype, Tensor] = {}

    def like(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Uninitialized tensors like `tensors`, valid until the next call."""
        ends: dict[torch.dtype, int] = {}
        for t in tensors:
            ends[t.dtype] = ends.get(t.dtype, 0) + _aligned(t.numel())
        used = dict.fromkeys(ends, 0)
        out = []
        for t in tensors:
            if t.device.type != "cpu" or is_sharded(t) or not t.is_contiguous():
                out.append(torch.empty_like(t))
                continue
            if t.dtype not in self._flat or self._flat[t.dtype].numel() < ends[t.dtype]:
                self._flat[t.dtype] = torch.empty(ends[t.dtype], dtype=t.dtype, device="cpu")
            start = used[t.dtype]
            out.append(self._flat[t.dtype][start : start + t.numel()].view(t.shape))
            used[t.dtype] = start + _aligned(t.numel())
        return out


def empty_vector() -> Tensor:
    """An empty float32 vector for the C++ kernels, which let it grow, whatever defaults and modes are in force."""
    with torch.inference_mode(False):
        return torch.empty(0, dtype=torch.float32, device="cpu")


def _aligned(elements: int) -> int:
    return -(-elements // _ALIGNMENT) * _ALIGNMENT
