"""Optimizers made of several: tables for the tests of the contract, and comparisons with the parts on their own."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_novograd.optim import LARC, Composite, NovoGrad

SGD, AdamW, Muon = torch.optim.SGD, torch.optim.AdamW, torch.optim.Muon
Parts = list[Optimizer]


def matrices(params: Iterable[torch.nn.Parameter]) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """The parameters with two dimensions, and the others."""
    params = list(params)
    return [p for p in params if p.ndim == 2], [p for p in params if p.ndim != 2]


MUON_LR = 0.02


def muon_and_adamw(params: list[torch.nn.Parameter]) -> Parts:
    flat, others = matrices(params)
    return [Muon(flat, lr=MUON_LR), AdamW(others, lr=0.01)]


# The parts of a composite over some layers, a matrix among them
PARTS: dict[str, Callable[[list[torch.nn.Parameter]], Parts]] = {
    "novograd + adamw": lambda ps: [
        NovoGrad(ps[:1], lr=0.05, betas=(0.9, 0.5), weight_decay=1e-3),
        AdamW(ps[1:], lr=0.01),
    ],
    "sgd + larc(sgd)": lambda ps: [
        SGD(ps[:1], lr=0.1, momentum=0.9),
        LARC(SGD(ps[1:], lr=0.1, momentum=0.9, weight_decay=1e-3), trust_coefficient=0.01),
    ],
    "muon + adamw": muon_and_adamw,
    "all fused": lambda ps: [
        NovoGrad(ps[:1], lr=0.05, fused=True),
        AdamW(ps[1:2], lr=0.01, fused=True),
        SGD(ps[2:], lr=0.1, momentum=0.9, fused=True),
    ],
    "one fused": lambda ps: [NovoGrad(ps[:1], lr=0.05, fused=True), RMSprop(ps[1:])],
    "twice the same": lambda ps: [SGD(ps[:1], lr=0.1), SGD(ps[1:], lr=0.5, nesterov=True, momentum=0.5)],
    "one": lambda ps: [AdamW(ps, lr=0.01)],
}


def RMSprop(params: list[torch.nn.Parameter]) -> Optimizer:
    return torch.optim.RMSprop(params, lr=0.001, momentum=0.5)


def in_two_parts(optimizer_class: type[Optimizer]) -> Callable[..., Composite]:
    """A constructor like that of `optimizer_class`, which divides the parameters or groups among two of them."""

    def construct(params: Iterable[Any], **options: Any) -> Composite:
        params = list(params)
        middle = (len(params) + 1) // 2
        return Composite([optimizer_class(half, **options) for half in (params[:middle], params[middle:]) if half])

    return construct


def params_of(optimizer: Optimizer) -> list[torch.nn.Parameter]:
    """All parameters of an optimizer, in the order of its groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]
