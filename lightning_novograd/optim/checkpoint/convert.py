"""NovoGrad's state, from and to other implementations: NeMo, timm, pytorch_optimizer and apex.

NeMo's and timm's state dicts load into `NovoGrad` as they are; `formats` says how the others differ. What the two sides
compute differently is refused: a state is converted only if training goes on by the same formula.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from lightning_novograd.errors import ConfigError, choices
from lightning_novograd.optim.checkpoint.formats import (
    FORMATS,
    detect_format,
    groups_and_states,
    is_novograd,
    read_group,
    write_group,
)

StateDict = dict[str, Any]


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
    groups, states = groups_and_states(state_dict)
    result: StateDict = {"state": {}, "param_groups": []}
    for index, saved in enumerate(groups):
        where = f"param_groups.{index}"
        if source == target:
            result["param_groups"].append(dict(saved))
            result["state"].update({i: dict(states[i]) for i in saved["params"] if i in states})
            continue
        _refuse_other_formulas(where, saved, source, target, reg_inside_moment)
        group = read_group(where, saved, states, source)
        group.step = group.step or step
        group_options, layer_states = write_group(where, group, target)
        result["param_groups"].append(group_options)
        result["state"].update(layer_states)
    return result


def in_our_format(state_dict: StateDict) -> StateDict:
    """The state dict of any known NovoGrad in our format; any other as it is.

    Raises:
        ConfigError: a known format, but a formula that ours does not have.

    """
    if not is_novograd(state_dict) or detect_format(state_dict) == "ours":
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
        if not isinstance(checkpoint["optimizer_states"], list):
            found = type(checkpoint["optimizer_states"]).__name__
            raise ConfigError("optimizer_states", f"expected a list of state dicts, found {found}")
        states = list(checkpoint["optimizer_states"])
        novograds = [i for i, state in enumerate(states) if is_novograd(state)]
        if not novograds:
            raise ConfigError("optimizer_states", f"none of the {len(states)} entries is the state of a known NovoGrad")
        for i in novograds:
            states[i] = convert(states[i])
        return {**checkpoint, "optimizer_states": states}
    if "optimizer" in checkpoint:
        return {**checkpoint, "optimizer": convert(checkpoint["optimizer"])}
    if "state_dict" in checkpoint:
        raise ConfigError("optimizer_states", "missing; the checkpoint was saved with its weights only")
    return convert(checkpoint)


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
        if group.get("bias_correction") and any(
            torch.tensor(c, dtype=torch.float32, device="cpu") != 1 for c in corrections
        ):
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
        if group.get("larc"):
            refuse(
                "larc",
                f"it is the state of a LARC, which {target} does not have; to convert that of the optimizer alone, set "
                "larc to False in its param groups",
            )
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
