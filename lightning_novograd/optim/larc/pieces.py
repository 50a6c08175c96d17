"""Param groups and parts of them: layers with gradients, layers that fit in a cache, a step on some layers only."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_novograd.optim.norms import accumulation_dtype

ParamGroup = dict[str, Any]

# Elements of the layers that are worked on together on a CPU: with gradients, moments and copies, a few MB.
CACHE_SIZE = 1 << 19


def with_gradient(group: ParamGroup) -> list[Tensor]:
    """The layers of a param group that have a gradient."""
    return [p for p in group["params"] if p.grad is not None]


def stackable(groups: list[ParamGroup]) -> Iterator[tuple[ParamGroup, list[int]]]:
    """Groups with indices of those of their layers whose norms can be stacked.

    The layers are those with a gradient, counted through all groups.
    """
    start = 0
    for group in groups:
        layers = with_gradient(group)
        indices: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for index, layer in enumerate(layers, start):
            indices.setdefault((layer.device, accumulation_dtype(layer.dtype)), []).append(index)
        for group_indices in indices.values():
            yield group, group_indices
        start += len(layers)


def cache_sized(layers: Sequence[Tensor], caches: int = 1) -> Iterator[list[Tensor]]:
    """Runs of layers that fit in `caches` caches together, or one layer that does not."""
    run: list[Tensor] = []
    elements = 0
    for layer in layers:
        if run and elements + layer.numel() > caches * CACHE_SIZE:
            yield run
            run, elements = [], 0
        run.append(layer)
        elements += layer.numel()
    if run:
        yield run


@contextmanager
def restricted_to(optimizer: Optimizer, group: ParamGroup, layers: list[Tensor]) -> Iterator[ParamGroup]:
    """Inside, `optimizer` steps on these layers only: its one param group, which is given, is `group` with them.

    The state of the layers is the optimizer's as ever, and its own list of param groups is back afterwards.
    """
    groups = optimizer.param_groups
    piece = {**group, "params": layers}
    optimizer.param_groups = [piece]
    try:
        yield piece
    finally:
        optimizer.param_groups = groups
