"""Addresses and sizes of many layers in device memory, so that one kernel launch reaches all of them.

Nothing here waits for the device: values travel through pinned memory that torch's caching allocator keeps until the
copy has run. Tensors are made on the device that is named, whatever torch's default device is.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

NO_STEP_BEFORE_CAPTURE = "run one step outside of a capture before capturing NovoGrad in a CUDA graph"


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on the current stream of this device."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


class AddressTable:
    """A table of addresses, int64 [rows, layers], that is uploaded again only when an address changed.

    A table is never overwritten: a CUDA graph may still read it. During a capture, a table whose addresses differ is
    written by the graph itself, in each replay, from pinned memory that was set aside in an earlier step.

    Args:
        rows, layers: its shape.
        device: where it lies.

    """

    def __init__(self, rows: int, layers: int, device: torch.device) -> None:
        self._shape, self.device = (rows, layers), device
        self._addresses: list[int] = []
        self._table = torch.empty(0, dtype=torch.int64, device=device)
        self._spare: tuple[Tensor, Tensor] | None = None
        self._captured: list[Tensor] = []  # graphs read them for as long as the parameters live

    def holding(self, addresses: list[int], *, capturable: bool) -> Tensor:
        """The table on the device with these addresses, row after row.

        Args:
            addresses: rows x layers integers.
            capturable: whether a later call may be captured in a CUDA graph.

        Raises:
            RuntimeError: addresses are new in a capture and no step ran uncaptured since the last capture.

        """
        if is_capturing(self.device):
            return self._captured_holding(addresses)
        if addresses != self._addresses:
            self._table = to_device(addresses, self.device).view(self._shape)
            self._addresses = addresses
        if capturable and self._spare is None and self.device.type == "cuda":
            host = torch.empty(self._shape, dtype=torch.int64, device="cpu", pin_memory=True)
            self._spare = host, torch.empty(self._shape, dtype=torch.int64, device=self.device)
        return self._table

    def _captured_holding(self, addresses: list[int]) -> Tensor:
        if addresses == self._addresses:
            self._captured.append(self._table)
            return self._table
        if self._spare is None:
            raise RuntimeError(NO_STEP_BEFORE_CAPTURE)
        host, table = self._spare
        self._spare = None
        self._captured += [host, table]
        host.copy_(torch.tensor(addresses, dtype=torch.int64, device=host.device).view(self._shape))
        return table.copy_(host, non_blocking=True)


class ChunkTable:
    """Which part of which layer each program of a launch works on.

    Args:
        sizes: elements per layer; a layer without elements has no chunks.
        chunk: elements per program.
        device: where the tables lie.

    `sizes` [layers], `first_chunks` [layers + 1] and `layer_of_chunk` [num_chunks] are int64 on the device.

    """

    def __init__(self, sizes: Sequence[int], chunk: int, device: torch.device) -> None:
        sizes_L = torch.tensor(sizes, dtype=torch.int64, device="cpu")
        counts_L = (sizes_L + chunk - 1) // chunk
        first_chunks = torch.cat([counts_L.new_zeros(1), counts_L.cumsum(0)])
        layer_of_chunk = torch.repeat_interleave(torch.arange(len(sizes), device="cpu"), counts_L)
        self.num_chunks = int(first_chunks[-1])
        lengths = [len(sizes), len(sizes) + 1, self.num_chunks]
        values = torch.cat([sizes_L, first_chunks, layer_of_chunk])
        self.sizes, self.first_chunks, self.layer_of_chunk = to_device(values, device).split(lengths)


def to_device(values: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """An int64 tensor on `device`, copied without a synchronization.

    Raises:
        RuntimeError: a graph is being captured, which an allocation of pinned memory would spoil.

    """
    if is_capturing(device):
        raise RuntimeError(NO_STEP_BEFORE_CAPTURE)
    host = torch.as_tensor(values, dtype=torch.int64, device="cpu")
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)
