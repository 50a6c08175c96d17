"""The param groups of an optimizer, as a table for logs and terminals."""

from collections.abc import Mapping
from typing import Any

from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_novograd.optim.composite import Composite

_HEAD = ("group", "tensors", "elements", "lr", "weight decay", "optimizer")


def group_table(optimizer: Optimizer) -> str:
    """Group, parameters, LR, weight decay and optimizer, a line for each param group.

    Args:
        optimizer: what `build_optimizers` built.

    """
    rows = [_HEAD, *_rows(optimizer)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(f"  {line}".rstrip() for line in lines)


def _rows(optimizer: Optimizer, under: str = "") -> list[tuple[str, ...]]:
    inner = getattr(optimizer, "optimizer", None)  # of LARC
    if isinstance(inner, Optimizer):
        return _rows(inner, " under LARC")
    if isinstance(optimizer, Composite):
        return [row for part in optimizer.optimizers for row in _rows(part, under)]
    return [
        _row(group, type(optimizer).__name__ + (under if group.get("larc", True) else ""))
        for group in optimizer.param_groups
    ]


def _row(group: Mapping[str, Any], optimizer: str) -> tuple[str, ...]:
    params = group["params"]
    elements = sum(p.numel() for p in params if not is_lazy(p))
    decay = group.get("weight_decay")
    # `initial_lr` is there where a schedule has begun
    lr = group.get("initial_lr", group.get("lr"))
    return (
        group.get("name", "default"),
        str(len(params)),
        f"{elements:,}",
        "" if lr is None else f"{float(lr):.4g}",
        "" if decay is None else f"{decay:.4g}",
        optimizer,
    )
