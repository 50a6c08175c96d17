"""What LARC can be asked for: its options, under OpenSeq2Seq's names too, and which optimizers it wraps."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_novograd.errors import choices
from lightning_novograd.optim.wrapped import all_in, needs_closure
from lightning_novograd.ranges import LARGEST_FLOAT32

TARGETS = ("auto", "gradient", "update")
# Those of LARC's arguments that stand in the param groups; there the target is the resolved one, the same in all.
ARGUMENTS = ("larc_trust_coefficient", "larc_clip", "larc_eps", "larc_min_update", "larc_target")
OPTIONS = ("larc", *ARGUMENTS)


def check_options(group: Mapping[str, Any]) -> None:
    """Raise for options of a param group that are unknown or out of range."""
    for option in group:
        if option.startswith("larc") and option not in OPTIONS:
            raise ValueError(f"unknown option {option!r}{choices(option, OPTIONS)}")
    for option in ("larc", "larc_clip"):
        if not isinstance(group[option], bool):
            raise TypeError(f"Invalid {option} value: {group[option]!r}; allowed: True, False")
    for option in ("larc_trust_coefficient", "larc_eps", "larc_min_update"):
        if not 0.0 <= group[option] <= LARGEST_FLOAT32:
            raise ValueError(f"Invalid {option} value: {group[option]}; allowed: a number >= 0 that float32 holds")
    if group["larc_target"] not in TARGETS[1:]:
        raise ValueError(
            f"Invalid larc_target value: {group['larc_target']!r}{choices(group['larc_target'], TARGETS[1:])}"
        )


def check_one_target(groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise where param groups have different targets."""
    targets = [group["larc_target"] for group in groups if "larc_target" in group]
    if len(set(targets)) > 1:
        raise ValueError(f"LARC has one target for all param groups, but their larc_target are {', '.join(targets)}")


def settle_options(optimizer: Optimizer, options: Mapping[str, Any]) -> None:
    """Check the options of an optimizer that is to be wrapped, and free it of those that it has loaded.

    Groups may have options of their own, which count. But where the optimizer has loaded the state of a LARC, all of
    them are there, the target included: then LARC's arguments count, with a warning, and what no argument asks for
    (`larc`) stays.

    Args:
        optimizer: what is to be wrapped.
        options: what LARC was asked for.

    Raises:
        ValueError, TypeError: an option is unknown or out of range.

    """
    arguments = {name: options[name] for name in ARGUMENTS}
    groups = dict(enumerate(optimizer.param_groups))
    loaded = {index: group for index, group in groups.items() if "larc_target" in group}
    for index, group in groups.items():
        check_options({**options, **group, **(arguments if index in loaded else {})})
    differing = [
        f"{name}={group[name]!r} in param group {index} (now {value!r})"
        for index, group in loaded.items()
        for name, value in arguments.items()
        if name in group and group[name] != value
    ]
    if differing:
        warnings.warn(
            f"this {type(optimizer).__name__} has loaded the state of a LARC with {', '.join(differing)}; to go on "
            "with the saved options, load the state into the LARC, not into the optimizer that it wraps",
            stacklevel=3,
        )
    for group in loaded.values():
        group.update(arguments)


def check_optimizer(optimizer: Optimizer) -> None:
    """Raise for optimizers that LARC cannot wrap."""
    kind = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"LARC wraps a torch.optim.Optimizer, not a {kind}")
    for one in all_in(optimizer):
        if "larc" in one.defaults:
            name = type(one).__name__
            raise ValueError(f"this {name} is under LARC already; set larc_* in its groups, or wrap a new optimizer")
        if needs_closure(one):
            raise TypeError(
                f"LARC needs one gradient per step, but {type(one).__name__} evaluates its closure several times"
            )
    for index, group in enumerate(optimizer.param_groups):
        check_group(kind, index, group, group["params"])


def check_group(kind: str, index: int, group: Mapping[str, Any], params: Iterable[Any]) -> None:
    """Raise for a param group that LARC cannot control.

    Args:
        kind: the wrapped optimizer's name.
        index: of the group in it.
        group: its options.
        params: its parameters.

    """
    if "lr" not in group:
        raise ValueError(f"LARC needs learning rates, but param group {index} of {kind} has no 'lr'")
    if group.get("differentiable"):
        raise ValueError("LARC does not support differentiable=True")
    if any(getattr(p, "_fsdp_flattened", False) or hasattr(p, "ds_id") for p in params):
        raise ValueError(
            "LARC needs whole layers, but FSDP1 or DeepSpeed flattened them; use "
            "torch.distributed.fsdp.fully_shard, in Lightning ModelParallelStrategy"
        )


def refuse_sparse_gradients(groups: Iterable[Mapping[str, Any]]) -> None:
    """Raise for a sparse gradient in any of the param groups."""
    for group in groups:
        if any(p.grad is not None and p.grad.layout != torch.strided for p in group["params"]):
            raise RuntimeError("LARC does not support sparse gradients; use a dense embedding (sparse=False)")


def larc_arguments_from_openseq2seq(params: Mapping[str, Any]) -> dict[str, Any]:
    r"""The arguments of :class:`LARC` for OpenSeq2Seq's `larc_params`.

    Args:
        params: `larc_eta` (required), `larc_mode` ("clip" or "scale"), `min_update`, `epsilon`.

    Returns:
        Keyword arguments of LARC. Keys left out take OpenSeq2Seq's defaults: "clip", 1e-7, 1e-7.

    Raises:
        ValueError: an unknown or missing key, or an unknown mode.

    Example:
        >>> larc_arguments_from_openseq2seq({"larc_eta": 0.001, "larc_mode": "scale"})
        {'trust_coefficient': 0.001, 'clip': False, 'eps': 1e-07, 'min_update': 1e-07, 'target': 'gradient'}

    OpenSeq2Seq's gradients contain the weight decay. With `weight_decay` in the optimizer instead,
    :math:`\|g\| + \lambda \|w\|` bounds the norm of their sum, so the factor is apex's, which is never larger.

    """
    known, modes = ("larc_eta", "larc_mode", "min_update", "epsilon"), ("clip", "scale")
    for key in params:
        if key not in known:
            raise ValueError(f"unknown LARC parameter {key!r}{choices(key, known)}")
    if "larc_eta" not in params:
        raise ValueError(f"larc_eta is missing; given: {', '.join(params) or 'nothing'}")
    mode = params.get("larc_mode", "clip")
    if mode not in modes:
        raise ValueError(f"Invalid larc_mode: {mode!r}{choices(mode, modes)}")
    return {
        "trust_coefficient": params["larc_eta"],
        "clip": mode == "clip",
        "eps": params.get("epsilon", 1e-7),
        "min_update": params.get("min_update", 1e-7),
        "target": "gradient",
    }
