"""What NovoGrad refuses: options out of range, pieces of layers, and states of other parameters."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import Optimizer, _device_dtype_check_for_fused

from lightning_novograd.ranges import LARGEST_FLOAT32, SMALLEST_FLOAT32, in_float32

SCALARS = ("exp_avg_sq", "max_exp_avg_sq")  # what the state of a layer holds beside its first moment


def check_options(options: dict[str, Any]) -> None:
    """Raise for options out of range and for workers that exclude each other."""
    lr, betas = options["lr"], options["betas"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    if not (0.0 <= lr < math.inf and lr <= LARGEST_FLOAT32):
        raise ValueError(f"Invalid learning rate: {lr}; allowed: a number >= 0 that float32 holds")
    if len(betas) != 2:
        raise ValueError(f"Invalid betas: {betas}; allowed: two numbers in [0, 1)")
    for index, beta in enumerate(betas):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {index}: {beta}; allowed: a number in [0, 1)")
        if in_float32(beta) == 1.0:
            problem = "allowed: a number in [0, 1), but this is 1 in float32; the largest is 0.9999999"
            raise ValueError(f"Invalid beta parameter at index {index}: {beta}; {problem}")
    for option in ("weight_decay", "luc_trust"):
        if not 0.0 <= options[option] <= LARGEST_FLOAT32:
            raise ValueError(f"Invalid {option} value: {options[option]}; allowed: a number >= 0 that float32 holds")
    for option in ("eps", "luc_eps"):
        # the reciprocal of less is infinite in float32, and 0 times that is NaN
        if options[option] != 0.0 and not SMALLEST_FLOAT32 <= options[option] <= LARGEST_FLOAT32:
            allowed = f"0, or a number that float32 holds, at least {SMALLEST_FLOAT32:.1e}"
            raise ValueError(f"Invalid {option} value: {options[option]}; allowed: {allowed}")
    if options["fused"] and options["foreach"]:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
    if options["differentiable"] and (options["fused"] or options["foreach"]):
        raise RuntimeError("`fused` and `foreach` do not support `differentiable`")


def refuse_flattened(param: Tensor, layers: Mapping[int, torch.Size | None]) -> None:
    """Raise for pieces of layers laid end to end: the layers, and so their norms, are lost in them.

    Args:
        param: the parameter in question.
        layers: the shapes that the optimizer's parameters had when they were given to it, by their ids.

    """
    if getattr(param, "_fsdp_flattened", False):
        raise ValueError(
            "NovoGrad needs whole layers, but this parameter was flattened by FullyShardedDataParallel (FSDP1); use "
            "FSDP2: torch.distributed.fsdp.fully_shard, in Lightning ModelParallelStrategy"
        )
    # ZeRO-3 marks its parameters; ZeRO-1 and 2 put one-dimensional partitions in the place of what we were given. What
    # we were given is a layer, whatever has become of its shape: lazy modules set it, and others may resize it.
    replaced = id(param) not in layers and param.dim() == 1 and param.shape not in layers.values()
    if hasattr(param, "ds_id") or replaced:
        raise ValueError(
            f"NovoGrad needs whole layers, but a parameter of shape {tuple(param.shape)} is a flattened partition "
            "(DeepSpeed ZeRO, or alike); use torch.distributed.fsdp.fully_shard, in Lightning ModelParallelStrategy"
        )


def refuse_unfused(optimizer: Optimizer) -> None:
    """Raise for a layer in any group that `fused=True` refuses in its first step, before a layer has changed."""
    groups, state = optimizer.param_groups, optimizer.state
    if len(state) < sum(len(group["params"]) for group in groups):  # else all have made their first step
        for group in groups:
            for param in group["params"] if group["fused"] else ():
                if param.grad is not None and param not in state:
                    _device_dtype_check_for_fused(param)


def refuse_conjugated(tensors: Sequence[Tensor]) -> None:
    """Raise for tensors with the conjugate bit: their memory, which a step writes, holds other values."""
    if any(map(Tensor.is_conj, tensors)):
        raise RuntimeError(
            "NovoGrad does not support parameters or moments with the conjugate bit; resolve_conj() gives one without"
        )


def check_same_parameters(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Raise where a state_dict was saved for other parameters; Optimizer itself compares only the groups' sizes."""
    groups, saved_groups = optimizer.param_groups, state_dict["param_groups"]
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in saved_groups]:
        return  # Optimizer says what is wrong
    names, saved_names = ([n for g in gs for n in g.get("param_names", ())] for gs in (groups, saved_groups))
    if names != saved_names and sorted(names) == sorted(saved_names):
        first = next(i for i, (name, saved) in enumerate(zip(names, saved_names, strict=True)) if name != saved)
        raise ValueError(
            f"loaded state dict holds the parameters in another order: {saved_names[first]!r} where the optimizer has "
            f"{names[first]!r}; build the optimizer with the same param groups in the same order"
        )
    for index, (group, saved_group) in enumerate(zip(groups, saved_groups, strict=True)):
        for position, (param, saved_id) in enumerate(zip(group["params"], saved_group["params"], strict=True)):
            state = state_dict["state"].get(saved_id)
            if not state:
                continue
            where = f"loaded state dict, parameter {position} of group {index}"
            scalars = [torch.as_tensor(state[key]) for key in SCALARS if key in state]
            if not {"exp_avg", "exp_avg_sq"} <= state.keys() or any(scalar.numel() != 1 for scalar in scalars):
                raise ValueError(f"{where}: not a NovoGrad state (a layer's exp_avg and a scalar exp_avg_sq)")
            if not is_lazy(param) and state["exp_avg"].shape != param.shape:
                raise ValueError(
                    f"{where}: saved for a parameter of shape {tuple(state['exp_avg'].shape)}, but the optimizer has "
                    f"{tuple(param.shape)} there; build it with the same param groups in the same order"
                )
