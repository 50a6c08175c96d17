"""Weights that are no numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_novograd.errors import DataError


def check_finite(path: str | Path, state_dict: Mapping[Any, Any]) -> None:
    """Refuse a checkpoint's weights that are NaN or infinite.

    Args:
        path: of the checkpoint.
        state_dict: its weights.

    Raises:
        DataError: there are some.
    """
    if bad := nonfinite_names(state_dict):
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise DataError(f"checkpoint {path} has weights that are not finite (NaN or infinity): {bad[0]}{more}")


def nonfinite_names(state_dict: Mapping[Any, Any], first: int | None = None) -> list[str]:
    """Names of the tensors that hold NaN or infinity.

    The device is asked once for all of them.

    Args:
        state_dict: tensors by name; other values are passed over.
        first: no more than so many.

    Example:
        >>> nonfinite_names({"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])})
        ['b']
    """
    names, sizes = [], []
    for name, value in state_dict.items():
        value = value.to_local() if hasattr(value, "to_local") else value
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel() and not value.is_meta:
            names.append(str(name))
            # a sum that overflows is looked at once more
            sizes.append(value.detach().sum(dtype=torch.float32))
    if not sizes:
        return []
    suspects = (~torch.isfinite(torch.stack([size.to(sizes[0].device) for size in sizes]))).tolist()
    # this process's part of a sharded one: the others may not look, and a collective would wait for them
    values = {str(n): value.to_local() if hasattr(value, "to_local") else value for n, value in state_dict.items()}
    found = (n for n, suspect in zip(names, suspects, strict=True) if suspect and not torch.isfinite(values[n]).all())
    return [name for _, name in zip(range(first or len(names)), found, strict=False)]
