"""NovoGrad's state, from and to other implementations: NeMo, timm, pytorch_optimizer and apex.

NeMo's and timm's state dicts hold what ours do under the same names, plus a step count that nothing depends on: they
load into `NovoGrad` as they are. pytorch_optimizer's has other names. apex's FusedNovoGrad keeps the layers' norms (not
their squares) in the param groups, one tensor for the float16 layers and one for the float32 layers.

What the two sides compute differently is refused: a state is converted only if training goes on by the same formula.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_novograd.errors import ConfigError, choices
from lightning_novograd.optim.norms import accumulation_dtype

__all__ = ["FORMATS", "convert_checkpoint", "convert_state_dict", "detect_format", "in_our_format"]

StateDict = dict[str, Any]

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
class _Layer:
    exp_avg: Tensor
    exp_avg_sq: Tensor
    max_exp_avg_sq: Tensor | None = None


@dataclass
class _Group:
    """A param group whatever its format."""

    options: dict[str, Any]
    layers: dict[Any, _Layer] = field(default_factory=dict)
    step: int = 0


def detect_format(state_dict: Mapping[str, Any]) -> str:
    """The entry of `FORMATS` that a NovoGrad optimizer's state dict has.

    Raises:
        ConfigError: it is not one of a NovoGrad.

    """
    groups, states = _parts(state_dict)
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


def convert_state_dict(
    state_dict: Mapping[str, Any],
    source: str | None = None,
    target: str = "ours",
    *,
    reg_inside_moment: bool | None = None,
    step: int = 0,
) -> StateDict:
    """The state dict of a NovoGrad optimizer in the format of another implementation.

    Options that the source does not store (`luc` in NeMo's) are left out: the optimizer that loads the result keeps
    those it was built with. Second moments become 0-dim float32 (float64 for float64 layers).

    Args:
        state_dict: what the source's `state_dict()` returned; it is not changed, but the result shares its tensors.
        source: its format, one of `FORMATS`; None: it is recognized.
        target: the format to make.
        reg_inside_moment: what apex's optimizer was built with, which it does not store. Only with True are its moments
            those of normalized gradients.
        step: optimizer steps so far, for targets that count them, where the source does not. Nothing depends on it.

    Raises:
        ConfigError: an unknown format, a damaged state, or options by which the target would go on differently.

    Example:
        >>> import torch
        >>> from lightning_novograd.optim import NovoGrad
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = NovoGrad(layer.parameters())
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> nemo = convert_state_dict(optimizer.state_dict(), target="nemo", step=1)
        >>> sorted(nemo["state"][0])
        ['exp_avg', 'exp_avg_sq', 'step']

    """
    source = detect_format(state_dict) if source is None else source
    for what, name in (("source", source), ("target", target)):
        if name not in FORMATS:
            raise ConfigError(what, f"unknown format {name!r}{choices(name, FORMATS)}")
    groups, states = _parts(state_dict)
    result: StateDict = {"state": {}, "param_groups": []}
    for index, saved in enumerate(groups):
        where = f"param_groups.{index}"
        if source == target:
            result["param_groups"].append(dict(saved))
            result["state"].update({i: dict(states[i]) for i in saved["params"] if i in states})
            continue
        _refuse_other_formulas(where, saved, source, target, reg_inside_moment)
        group = _read(where, saved, states, source)
        group.step = group.step or step
        group_options, layer_states = _write(where, group, target)
        result["param_groups"].append(group_options)
        result["state"].update(layer_states)
    return result


def in_our_format(state_dict: StateDict) -> StateDict:
    """The state dict of any known NovoGrad in our format; any other as it is.

    Raises:
        ConfigError: a known format, but a formula that ours does not have.

    """
    if not _is_novograd(state_dict) or detect_format(state_dict) == "ours":
        return state_dict
    return convert_state_dict(state_dict)


def convert_checkpoint(
    checkpoint: Mapping[str, Any],
    source: str | None = None,
    target: str = "ours",
    *,
    reg_inside_moment: bool | None = None,
) -> dict[str, Any]:
    """A training checkpoint with the state of its NovoGrad optimizers converted, and all else as it was.

    Args:
        checkpoint: of Lightning or NeMo (a list `optimizer_states`), a dict with an `optimizer`, or a bare state dict.
        source: as for `convert_state_dict`. Other optimizers in the list are left alone.
        target: as for `convert_state_dict`.
        reg_inside_moment: as for `convert_state_dict`.

    Raises:
        ConfigError: as `convert_state_dict`, or the checkpoint holds no state of a NovoGrad.

    """
    step = checkpoint.get("global_step", 0)

    def convert(state_dict: Mapping[str, Any]) -> StateDict:
        return convert_state_dict(state_dict, source, target, reg_inside_moment=reg_inside_moment, step=step)

    if "optimizer_states" in checkpoint:
        states = list(checkpoint["optimizer_states"])
        novograds = [i for i, state in enumerate(states) if _is_novograd(state)]
        if not novograds:
            raise ConfigError("optimizer_states", f"none of the {len(states)} entries is the state of a known NovoGrad")
        for i in novograds:
            states[i] = convert(states[i])
        return {**checkpoint, "optimizer_states": states}
    if "optimizer" in checkpoint:
        return {**checkpoint, "optimizer": convert(checkpoint["optimizer"])}
    return convert(checkpoint)


def _is_novograd(state_dict: Mapping[str, Any]) -> bool:
    try:
        detect_format(state_dict)
    except ConfigError:
        return False
    return True


def _parts(state_dict: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[Any, dict[str, Any]]]:
    for key, kind in (("param_groups", list), ("state", dict)):
        if not isinstance(state_dict.get(key), kind):
            found = ", ".join(sorted(map(str, state_dict))) or "nothing"
            raise ConfigError(key, f"an optimizer's state dict has a {kind.__name__} here; found keys: {found}")
    return state_dict["param_groups"], state_dict["state"]


def _refuse_other_formulas(
    where: str, group: Mapping[str, Any], source: str, target: str, reg_inside_moment: bool | None
) -> None:
    """Raise for options with which source and target would take different steps."""

    def refuse(option: str, why: str) -> None:
        raise ConfigError(f"{where}.{option}", f"{group.get(option)!r} cannot be converted: {why}")

    decays = group.get("weight_decay", 0) != 0
    if source == "apex":
        if reg_inside_moment is not True:
            raise ConfigError(
                "reg_inside_moment",
                f"{reg_inside_moment} cannot be converted: apex stores the moments of raw gradients unless built with "
                "reg_inside_moment=True, and does not store which; if it was, say so",
            )
        if group.get("norm_type", 2) != 2:
            refuse("norm_type", "others normalize by the L2 norm (2)")
        # 1 - beta ** step, once float32 rounds it to 1, corrects nothing
        corrections = [1 - beta ** group.get("step", 0) for beta in group.get("betas", ())]
        if group.get("bias_correction") and any(torch.tensor(c, dtype=torch.float32) != 1 for c in corrections):
            refuse(
                "bias_correction", f"no other NovoGrad corrects, and at step {group.get('step', 0)} it still matters"
            )
    if source == "timm" and group.get("decoupled_decay") and decays:
        refuse("decoupled_decay", "others add the weight decay to the normalized gradient")
    if source == "pytorch_optimizer":
        if group.get("weight_decouple") and decays:
            refuse("weight_decouple", "others add the weight decay to the normalized gradient")
        if group.get("adam_debias"):
            refuse("adam_debias", "no other NovoGrad corrects its step size")
    if source == "ours":
        if group.get("luc") and target != "nemo":
            refuse("luc", f"{target} has no layer-wise clipping of the learning rate")
        if group.get("luc"):
            warnings.warn(
                "NeMo's state has no place for luc: build its optimizer with luc=True, "
                f"luc_trust={group['luc_trust']}, "
                f"luc_eps={group['luc_eps']}",
                stacklevel=3,
            )
        if group.get("maximize") and target != "pytorch_optimizer":
            refuse("maximize", f"{target} always minimizes")
    if group.get("amsgrad") and target in ("pytorch_optimizer", "apex"):
        refuse("amsgrad", f"{target} has no running maximum")


def _read(where: str, saved: Mapping[str, Any], states: Mapping[Any, Mapping[str, Any]], source: str) -> _Group:
    group = _Group({key: value for key, value in saved.items() if key not in _OWN[source]}, step=saved.get("step", 0))
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
        group.layers[layer_id] = _Layer(
            exp_avg, exp_avg_sq, None if maximum is None else _scalar(here, maximum, exp_avg)
        )
        group.step = max(group.step, int(state.get("step", 0)))
    return group


def _scalar(where: str, value: Any, exp_avg: Tensor) -> Tensor:
    value = torch.as_tensor(value)
    if value.numel() != 1:
        shape = tuple(value.shape)
        raise ConfigError(where, f"a second moment of shape {shape}: NovoGrad has one number per layer")
    return value.reshape(()).to(accumulation_dtype(exp_avg.dtype))


def _apex_norms(where: str, saved: Mapping[str, Any], states: list[Mapping[str, Any]]) -> list[Tensor]:
    """A layer's norm each, out of apex's one tensor of norms per dtype, which is in the order of the group's layers."""
    if not states:
        return []
    if any("exp_avg" not in state for state in states):
        raise ConfigError(where, "a layer's state lacks exp_avg")
    norms = dict(zip(_APEX_DTYPES, map(torch.as_tensor, saved.get("exp_avg_sq", ())), strict=False))
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


def _write(where: str, group: _Group, target: str) -> tuple[dict[str, Any], dict[Any, dict[str, Any]]]:
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
                torch.tensor([layer.exp_avg_sq.sqrt() for layer in layers.values() if layer.exp_avg.dtype == dtype])
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
