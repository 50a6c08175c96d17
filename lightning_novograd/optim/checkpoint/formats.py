"""What the state dicts of NovoGrad's implementations look like: how one is recognized, read and written.

NeMo's and timm's state dicts hold what ours do under the same names, plus a step count that nothing depends on.
pytorch_optimizer's has other names. apex's FusedNovoGrad keeps the layers' norms (not their squares) in the param
groups, one tensor for the float16 layers and one for the float32 layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_novograd.errors import ConfigError
from lightning_novograd.optim.norms import accumulation_dtype

# What param groups hold in one format only. Everything else (lr, betas, ..., initial_lr, param_names) is handed on.
_OWN: dict[str, tuple[str, ...]] = {
    "ours": ("luc", "luc_trust", "luc_eps", "maximize", "foreach", "fused", "capturable", "differentiable"),
    "nemo": (),
    "timm": ("decoupled_decay", "corrected_weight_decay", "max_lr_snapshot"),
    "pytorch_optimizer": ("step", "weight_decouple", "fixed_decay", "adam_debias", "foreach"),
    "apex": ("step", "exp_avg_sq", "bias_correction", "norm_type", "init_zero"),
}
FORMATS = tuple(_OWN)

# apex's two lists of norms, in its order
_APEX_DTYPES = (torch.float16, torch.float32)


@dataclass
class Layer:
    """A layer's moments whatever the format; the second ones are squares, 0-dim, float32 or float64."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    max_exp_avg_sq: Tensor | None = None


@dataclass
class Group:
    """A param group whatever its format."""

    options: dict[str, Any]
    layers: dict[Any, Layer] = field(default_factory=dict)
    step: int = 0


def detect_format(state_dict: Mapping[str, Any]) -> str:
    """The entry of `FORMATS` that a NovoGrad optimizer's state dict has.

    Raises:
        ConfigError: it is not one of a NovoGrad.

    """
    groups, states = groups_and_states(state_dict)
    keys = {key for group in groups for key in group}
    state_keys = {key for state in states.values() for key in state}
    if {"grad_averaging", "luc_trust"} <= keys:
        return "ours"
    if {"grad_averaging", "norm_type", "bias_correction"} <= keys:
        return "apex"
    if {"grad_averaging", "weight_decouple"} <= keys or {"grads_ema", "moments"} <= state_keys:
        return "pytorch_optimizer"
    if {"grad_averaging", "decoupled_decay"} <= keys:
        return "timm"
    if {"grad_averaging", "amsgrad", "betas"} <= keys:  # timm's too, until it had decoupled decay
        return "nemo"
    raise ConfigError("param_groups", f"not the state of a known NovoGrad; the groups hold {', '.join(sorted(keys))}")


def is_novograd(state_dict: Mapping[str, Any]) -> bool:
    """Whether it is the state dict of a known NovoGrad."""
    try:
        detect_format(state_dict)
    except ConfigError:
        return False
    return True


def groups_and_states(state_dict: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[Any, dict[str, Any]]]:
    """The param groups of a state dict, and its states.

    Raises:
        ConfigError: it is not that of an optimizer.

    """
    if not isinstance(state_dict, Mapping):
        raise ConfigError("", f"expected the state dict of an optimizer, found {type(state_dict).__name__}")
    for key, kind in (("param_groups", list), ("state", dict)):
        if not isinstance(state_dict.get(key), kind):
            found = ", ".join(sorted(map(str, state_dict))) or "nothing"
            raise ConfigError(key, f"an optimizer's state dict has a {kind.__name__} here; found keys: {found}")
    for index, group in enumerate(state_dict["param_groups"]):
        if not isinstance(group, dict) or not isinstance(group.get("params"), list):
            raise ConfigError(f"param_groups.{index}", "expected a param group: options, and a list of its params")
    for layer, state in state_dict["state"].items():
        if not isinstance(state, dict):
            raise ConfigError(f"state.{layer}", f"expected a layer's state, found {type(state).__name__}")
    return state_dict["param_groups"], state_dict["state"]


def read_group(where: str, saved: Mapping[str, Any], states: Mapping[Any, Mapping[str, Any]], source: str) -> Group:
    """A param group and the states of its layers; `where` names it in errors.

    Raises:
        ConfigError: something is missing, or does not belong together.

    """
    # of groups that LARC leaves alone, its options are no loss
    options = {key: value for key, value in saved.items() if key not in _OWN[source] and not key.startswith("larc")}
    group = Group(options, step=saved.get("step", 0))
    group.options.setdefault("amsgrad", False)
    if "betas" in saved:
        group.options["betas"] = tuple(saved["betas"])
    ids = [i for i in saved["params"] if states.get(i)]
    names = ("moments", "grads_ema") if source == "pytorch_optimizer" else ("exp_avg", "exp_avg_sq")
    norms = _apex_norms(where, saved, [states[i] for i in ids]) if source == "apex" else [None] * len(ids)
    for layer_id, norm in zip(ids, norms, strict=True):
        state, here = states[layer_id], f"state.{layer_id}"
        if names[0] not in state or (norm is None and names[1] not in state):
            raise ConfigError(here, f"expected {names[0]} and {names[1]} of {source}, found {', '.join(sorted(state))}")
        exp_avg = state[names[0]]
        exp_avg_sq = _scalar(here, state[names[1]] if norm is None else norm.double().square(), exp_avg)
        maximum = state.get("max_exp_avg_sq") if saved.get("amsgrad") else None
        if saved.get("amsgrad") and maximum is None:
            raise ConfigError(here, "the group has amsgrad, but max_exp_avg_sq is missing")
        group.layers[layer_id] = Layer(
            exp_avg, exp_avg_sq, None if maximum is None else _scalar(here, maximum, exp_avg)
        )
        group.step = max(group.step, int(state.get("step", 0)))
    return group


def _scalar(where: str, value: Any, exp_avg: Tensor) -> Tensor:
    value = _as_tensor(value)
    if value.numel() != 1:
        shape = tuple(value.shape)
        raise ConfigError(where, f"a second moment of shape {shape}: NovoGrad has one number per layer")
    return value.reshape(()).to(accumulation_dtype(exp_avg.dtype))


def _as_tensor(value: Any) -> Tensor:
    """A tensor as it is, numbers on the CPU, whatever torch's default device is."""
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64, device="cpu")


def _apex_norms(where: str, saved: Mapping[str, Any], states: list[Mapping[str, Any]]) -> list[Tensor]:
    """A layer's norm each, out of apex's one tensor of norms per dtype, which is in the order of the group's layers."""
    if not states:
        return []
    if any("exp_avg" not in state for state in states):
        raise ConfigError(where, "a layer's state lacks exp_avg")
    norms = dict(zip(_APEX_DTYPES, map(_as_tensor, saved.get("exp_avg_sq", ())), strict=False))
    sizes = {dtype: values.numel() for dtype, values in norms.items()}
    counts = {dtype: sum(state["exp_avg"].dtype == dtype for state in states) for dtype in _APEX_DTYPES}
    if counts != sizes or sum(counts.values()) != len(states):
        dtypes = [str(state["exp_avg"].dtype) for state in states]
        raise ConfigError(
            f"{where}.exp_avg_sq",
            f"{list(sizes.values())} norms of float16 and float32 layers, but the layers' moments are {dtypes}",
        )
    remaining = {dtype: iter(values) for dtype, values in norms.items()}
    return [next(remaining[state["exp_avg"].dtype]) for state in states]


def write_group(where: str, group: Group, target: str) -> tuple[dict[str, Any], dict[Any, dict[str, Any]]]:
    """The options and the layers' states of a param group in the format `target`; `where` names it in errors.

    Raises:
        ConfigError: the format has no place for a layer.

    """
    options, layers, step = dict(group.options), group.layers, group.step
    if target in ("pytorch_optimizer", "apex"):
        del options["amsgrad"]
    if target == "pytorch_optimizer":
        options |= {"step": step, "weight_decouple": False, "fixed_decay": False, "foreach": None}
        return options, {i: {"moments": layer.exp_avg, "grads_ema": layer.exp_avg_sq} for i, layer in layers.items()}
    if target == "apex":
        options |= {"step": step, "bias_correction": False, "norm_type": 2, "init_zero": False}
        others = {layer.exp_avg.dtype for layer in layers.values()} - set(_APEX_DTYPES)
        if others:
            raise ConfigError(where, f"apex's FusedNovoGrad has no {', '.join(map(str, others))} layers")
        if layers:
            options["exp_avg_sq"] = [
                _as_tensor(
                    [layer.exp_avg_sq.sqrt().item() for layer in layers.values() if layer.exp_avg.dtype == dtype]
                ).float()
                for dtype in _APEX_DTYPES
            ]
        return options, {i: {"exp_avg": layer.exp_avg} for i, layer in layers.items()}
    if target == "timm":
        options |= {"decoupled_decay": False, "corrected_weight_decay": False}
    states: dict[Any, dict[str, Any]] = {}
    for layer_id, layer in layers.items():
        states[layer_id] = {"exp_avg": layer.exp_avg, "exp_avg_sq": layer.exp_avg_sq}
        if layer.max_exp_avg_sq is not None:
            states[layer_id]["max_exp_avg_sq"] = layer.max_exp_avg_sq
        if target != "ours":
            states[layer_id]["step"] = step
    return options, states
