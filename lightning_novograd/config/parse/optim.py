"""Parsing of the optim block: plain data -> `OptimConfig`. Names, types and ranges; nothing is built here."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from lightning_novograd.config.arguments import REQUIRED, Argument, entry_arguments
from lightning_novograd.config.parse import nemo
from lightning_novograd.config.parse.block import Block, check_arguments, in_range
from lightning_novograd.config.parse.effects import check_effects
from lightning_novograd.config.parse.sched import sched_of_block
from lightning_novograd.config.schema import (
    EMA_KEYS,
    LARC_ARGUMENTS,
    LARC_KEYS,
    LARGE_BATCH_KEYS,
    LAYER_DECAY_KEYS,
    OPTIM_KEYS,
    RULE_KEYS,
    SCHED_KEYS,
    EmaConfig,
    LarcConfig,
    LargeBatchConfig,
    OptimConfig,
    OptimizerSpec,
    RuleConfig,
    SchedConfig,
)
from lightning_novograd.errors import ConfigError, choices
from lightning_novograd.optim.layer_decay import LayerDecay
from lightning_novograd.optim.selection import SHORTHANDS
from lightning_novograd.ranges import AT_LEAST_1, BELOW_1, NOT_NEGATIVE, POSITIVE_SHARE, Range
from lightning_novograd.registry import Entry, get_optimizer

# OpenSeq2Seq's names -> ours
_LARC_ALIASES = {"larc_eta": "trust_coefficient", "larc_mode": "clip", "epsilon": "eps"}
# Keys of a schedule that hosts know once: of the block's schedule, or of the first rule's if the block has none
_OF_ALL_SCHEDULES = ("monitor", "strict", "steps_per_batch", "log_name")
_CLIP = Range("above 0, or null for no clipping", lambda value: value > 0)


def parse_block(values: Any, path: str) -> OptimConfig:
    """The optim block `values`, which are plain data (`to_plain`), with every key known and every value of its type.

    Args:
        values: the block.
        path: of the block in the config, for errors.

    Raises:
        ConfigError: a key that is unknown or missing, a value of a wrong type or out of range, a contradiction.

    """
    block = Block.of(values, path)
    entry = _optimizer_entry(block)
    arguments = entry_arguments(entry)
    fields, args = block.split(OPTIM_KEYS, arguments)
    check_arguments(entry, args, path)
    rules = tuple(
        _rule(rule, f"{path}.param_groups[{i}]", entry, args) for i, rule in enumerate(fields["param_groups"] or ())
    )
    larc = _larc(fields["larc"], f"{path}.larc")
    clip = {key: fields[key] for key in ("grad_clip_norm", "grad_clip_value")}
    for key, value in clip.items():
        _CLIP.check(f"{path}.{key}", value)
    _check_clipping(clip, larc, path)
    sched = sched_of_block(nemo.used_schedule(fields["sched"], f"{path}.sched"), args, rules, f"{path}.sched")
    check_effects(OptimizerSpec(name=entry.name, args=args, path=path), rules, sched)
    _check_one_larc(larc, rules)
    _check_stepped_together(sched, rules)
    return OptimConfig(
        name=entry.name,
        args=args,
        sched=sched,
        larc=larc,
        no_decay=_texts(fields["no_decay"]),
        layer_decay=_layer_decay(fields["layer_decay"], f"{path}.layer_decay"),
        param_groups=rules,
        ema=_ema(fields["ema"], f"{path}.ema"),
        large_batch=_large_batch(fields["large_batch"], f"{path}.large_batch"),
        module=fields["module"] or "",
        path=path,
        **clip,
    )


def _optimizer_entry(block: Block) -> Entry:
    """The optimizer that a block names; its arguments are then where they belong."""
    name = block.take_name("optimizer")
    is_fused_adam = nemo.is_fused_adam(name, block.path)
    entry = get_optimizer("AdamW" if is_fused_adam else name, f"{block.path}.name")
    block.unpack_legacy_args(entry.name)
    return get_optimizer(nemo.fused_adam(block.values, block.paths, block.path)) if is_fused_adam else entry


def _check_clipping(clip: Mapping[str, float | None], larc: LarcConfig | None, path: str) -> None:
    if None not in clip.values():
        raise ConfigError(f"{path}.grad_clip_value", "grad_clip_norm is given too; Lightning clips one way, give one")
    clipped = next((key for key, value in clip.items() if value is not None), None)
    if larc is not None and clipped is not None and not larc.allow_grad_clip:
        raise ConfigError(f"{path}.{clipped}", "LARC bounds the step already; larc.allow_grad_clip: true allows both")


def _rule(value: Any, path: str, entry: Entry, args: Mapping[str, Any]) -> RuleConfig:
    """A rule; `entry` and `args` are of the block's optimizer."""
    block = Block.of(value, path)
    arguments = {key: replace(argument, default=None) for key, argument in entry_arguments(entry).items()}
    if block.values.get("optimizer") is not None:
        _check_in_optimizer(block)
        arguments = {}  # which it has itself
    fields, options = block.split(RULE_KEYS, arguments)
    check_arguments(entry, options, path)
    match, module_type = _texts(fields["match"]), _texts(fields["module_type"])
    if not match and not module_type:
        raise ConfigError(f"{path}.match", f"missing; which parameters? {', '.join(SHORTHANDS)}, globs, or module_type")
    if not fields["larc"]:
        options["larc"] = False
    for factor, option in (("lr_mult", "lr"), ("wd_mult", "weight_decay")):
        if fields[factor] is not None and option in options:
            raise ConfigError(f"{path}.{factor}", f"{fields[factor]}, but {option} is given too; give one")
    optimizer = _optimizer(fields["optimizer"], f"{path}.optimizer")
    of_optimizer = {**args, **options} if optimizer is None else optimizer.args
    return RuleConfig(
        match=match,
        module_type=module_type,
        options=options,
        lr_mult=in_range(NOT_NEGATIVE, fields["lr_mult"], f"{path}.lr_mult"),
        wd_mult=in_range(NOT_NEGATIVE, fields["wd_mult"], f"{path}.wd_mult"),
        name=fields["name"],
        path=path,
        optimizer=optimizer,
        sched=sched_of_block(fields["sched"], of_optimizer, (), f"{path}.sched"),
    )


def _check_in_optimizer(block: Block) -> None:
    """Refuse what a rule has beside its optimizer and is meant for that."""
    unknown = [key for key in block.values if key not in RULE_KEYS]
    given = block.values["optimizer"]
    optimizer = _optimizer(given, f"{block.path}.optimizer") if isinstance(given, str | Mapping) else None
    for key in unknown:
        if optimizer is not None and key in entry_arguments(get_optimizer(optimizer.name)):
            problem = f"unknown key beside an optimizer of the rule's own; write optimizer: {{name: {optimizer.name}, "
            raise ConfigError(block.paths[key], f"{problem}{key}: {block.values[key]}}}")


def _optimizer(value: Any, path: str) -> OptimizerSpec | None:
    """The optimizer of a rule's own: a name, or a block of a name and arguments."""
    if value is None:
        return None
    block = Block.of({"name": value} if isinstance(value, str) else value, path)
    entry = _optimizer_entry(block)
    fields, args = block.split({"larc": OPTIM_KEYS["larc"]}, entry_arguments(entry))
    check_arguments(entry, args, path)
    return OptimizerSpec(name=entry.name, args=args, larc=_larc(fields["larc"], f"{path}.larc"), path=path)


def _check_one_larc(larc: LarcConfig | None, rules: Iterable[RuleConfig]) -> None:
    for rule in rules:
        if larc is not None and rule.optimizer is not None and rule.optimizer.larc is not None:
            raise ConfigError(f"{rule.optimizer.path}.larc", "the whole block is under LARC already; give one")


def _check_stepped_together(sched: SchedConfig | None, rules: Iterable[RuleConfig]) -> None:
    """The schedules of rules are stepped with the block's, as one scheduler."""
    scheds = [own for rule in rules if (own := rule.sched) is not None]
    if scheds and sched is not None:
        scheds.insert(0, sched)
    for own in scheds:
        if own.reduce_on_plateau and len(scheds) > 1:
            raise ConfigError(f"{own.path}.name", f"{own.name} follows a metric, and another schedule is beside it")
        for key in ("interval", "frequency"):
            first, value = getattr(scheds[0], key), getattr(own, key)
            if value != first:
                problem = f"{value}, but {scheds[0].path}.{key} is {first}; both are stepped together, say {key} in one"
                raise ConfigError(f"{own.path}.{key}", problem)
        for key in _OF_ALL_SCHEDULES:
            value = getattr(own, key)
            if value not in (SCHED_KEYS[key].default, getattr(scheds[0], key)):
                problem = f"{value!r} has no effect: both are stepped together, as {scheds[0].path} says"
                raise ConfigError(f"{own.path}.{key}", f"{problem}; say {key} there, or leave it out")


def _layer_decay(value: Any, path: str) -> LayerDecay | None:
    fields = _decay_fields(value, LAYER_DECAY_KEYS, path)
    if fields is None:
        return None
    POSITIVE_SHARE.check(f"{path}.decay", fields["decay"])
    layers = fields["layers"]
    if not layers:
        raise ConfigError(f"{path}.layers", f"{layers!r} names no layer; {LAYER_DECAY_KEYS['layers'].wanted}")
    return LayerDecay(decay=fields["decay"], layers=layers if isinstance(layers, str) else tuple(layers), path=path)


def _ema(value: Any, path: str) -> EmaConfig | None:
    fields = _decay_fields(value, EMA_KEYS, path)
    if fields is None:
        return None
    in_range(BELOW_1, fields["decay"], f"{path}.decay")
    in_range(AT_LEAST_1, fields["update_every_n_steps"], f"{path}.update_every_n_steps")
    in_range(NOT_NEGATIVE, fields["update_starting_at_step"], f"{path}.update_starting_at_step")
    return EmaConfig(**fields)


def _large_batch(value: Any, path: str) -> LargeBatchConfig | None:
    if value is None:
        return None
    config = LargeBatchConfig(**_fields(Block.of(value, path), LARGE_BATCH_KEYS), path=path)
    config.ramp(devices=1)  # what has no exact split there has none on more
    return config


def _decay_fields(value: Any, keys: Mapping[str, Argument], path: str) -> dict[str, Any] | None:
    """The `keys` of a mapping, or of a number that stands for its `decay`; None for null."""
    if value is None:
        return None
    return _fields(Block.of({"decay": value} if isinstance(value, float) else value, path), keys)


def _fields(block: Block, keys: Mapping[str, Argument]) -> dict[str, Any]:
    """The `keys` of a block that has no others, all that must be given among them."""
    fields, _ = block.split(keys, {})
    for key, argument in keys.items():
        if fields[key] is REQUIRED:
            raise ConfigError(f"{block.path}.{key}", f"missing; {argument.wanted}")
    return fields


def _larc(value: Any, path: str) -> LarcConfig | None:
    if value is None or value is False:
        return None
    block = Block.of({} if value is True else value, path)
    modes = {"clip": True, "scale": False}
    if "larc_mode" in block.values:
        mode = block.values["larc_mode"]
        if mode not in ("clip", "scale"):
            raise ConfigError(block.paths["larc_mode"], f"{mode!r} is unknown{choices(mode, modes)}")
        block.values["larc_mode"] = modes[mode]
    block.rename(_LARC_ALIASES)
    fields, args = block.split(LARC_KEYS, LARC_ARGUMENTS)
    return LarcConfig(args=args, allow_grad_clip=fields["allow_grad_clip"])


def _texts(value: str | Iterable[str] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)
