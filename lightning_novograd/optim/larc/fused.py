"""Which of LARC's fused workers steps a param group."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_novograd.optim.kernels.cpu.torch_sgd import has_fused_sgd
from lightning_novograd.optim.larc.cpu import novograd_step, sgd_step
from lightning_novograd.optim.larc.factors import Factors
from lightning_novograd.optim.larc.native import (
    are_built_for,
    native_adam_step,
    native_novograd_step,
    native_sgd_step,
)
from lightning_novograd.optim.larc.pieces import ParamGroup
from lightning_novograd.optim.novograd.optimizer import NovoGrad
from lightning_novograd.optim.novograd.options import Options

# A step of one param group's layers: their factors, and the layers that it leaves to others
FusedStep = Callable[[], tuple[Factors, list[Tensor]]]


def fused_step(optimizer: Optimizer, target: str, group: ParamGroup, vector: Tensor) -> FusedStep | None:
    """The fused worker for a param group, ready to be called, or None.

    As with torch's own workers, `foreach=True` or `fused=False` in the group asks for another one.

    Args:
        optimizer: the wrapped optimizer.
        target: "gradient" or "update".
        group: one of its param groups, all on the CPU and none sharded.
        vector: memory for temporaries, which the caller keeps between steps.

    """
    if not group["larc"] or group.get("foreach") or group.get("fused") is False:
        return None
    built = are_built_for(group["params"])
    if type(optimizer) is torch.optim.SGD and target == "gradient":
        if built:
            return partial(native_sgd_step, optimizer, group)
        if has_fused_sgd() and not group["nesterov"] and not group["maximize"]:
            return partial(sgd_step, optimizer, group)
    if type(optimizer) is NovoGrad and target == "update":
        if built:
            return partial(native_novograd_step, optimizer.layers_of(group), Options.of(group), group)
        if has_fused_sgd() and not group["luc"]:
            return partial(novograd_step, optimizer, group, optimizer.layers_of)
    if type(optimizer) in (torch.optim.Adam, torch.optim.AdamW) and target == "update":
        assert isinstance(optimizer, torch.optim.Adam)
        if built and not group["amsgrad"]:
            return partial(native_adam_step, optimizer, group, vector)
    return None
