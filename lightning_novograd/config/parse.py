"""Parsing of the optim block: plain data -> `OptimConfig`. Names, types and ranges; nothing is built here."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lightning_novograd.config.arguments import Argument, entry_arguments
from lightning_novograd.config.composed import own_interval
from lightning_novograd.config.group_lrs import check_lr_is_said, keep_momentum
from lightning_novograd.config.schema import (
    LARC_ARGUMENTS,
    LARC_KEYS,
    OPTIM_KEYS,
    RULE_KEYS,
    SCHED_KEYS,
    WARMUP_KEYS,
    LarcConfig,
    OptimConfig,
    SchedConfig,
    SchedulerSpec,
)
from lightning_novograd.errors import ConfigError, choices
from lightning_novograd.optim.param_groups import ParamGroupRule
from lightning_novograd.registry import Entry, get_optimizer, get_scheduler

# NeMo's names -> ours; NeMo fills the runtime keys itself, in YAML they are null
_SCHED_ALIASES = {"t_max_epochs": "max_epochs"}
_NEMO_RUNTIME_KEYS = ("iters_per_batch", "t_accumulate_grad_batches", "t_limit_train_batches", "t_num_workers")
# OpenSeq2Seq's names -> ours
_LARC_ALIASES = {"larc_eta": "trust_coefficient", "larc_mode": "clip", "epsilon": "eps"}


def parse_block(values: Any, path: str) -> OptimConfig:
    """The optim block `values`, which are plain data (`to_plain`), with every key known and every value of its type.

    Args:
        values: the block.
        path: of the block in the config, for errors.

    Raises:
        ConfigError: a key that is unknown or missing, a value of a wrong type or out of range, a contradiction.

    """
    block = _Block.of(values, path)
    entry = get_optimizer(block.take_name("optimizer"), f"{path}.name")
    block.unpack_legacy_args(entry.name)
    arguments = entry_arguments(entry)
    fields, args = block.split(OPTIM_KEYS, arguments)
    _check_arguments(entry, args, path)
    rules = tuple(
        _rule(rule, f"{path}.param_groups[{index}]", entry) for index, rule in enumerate(fields["param_groups"] or ())
    )
    larc = _larc(fields["larc"], f"{path}.larc")
    clip = {key: _positive(fields[key], f"{path}.{key}") for key in ("grad_clip_norm", "grad_clip_value")}
    _check_clipping(clip, larc, path)
    return OptimConfig(
        name=entry.name,
        args=args,
        sched=_sched_of_block(fields["sched"], args, rules, f"{path}.sched"),
        larc=larc,
        no_decay=_texts(fields["no_decay"]),
        param_groups=rules,
        path=path,
        **clip,
    )


def _check_arguments(entry: Entry, args: Mapping[str, Any], path: str) -> None:
    try:
        entry.check_arguments(args)
    except ConfigError as error:
        raise ConfigError(f"{path}.{error.path}", error.problem) from error


def _check_clipping(clip: Mapping[str, float | None], larc: LarcConfig | None, path: str) -> None:
    if None not in clip.values():
        raise ConfigError(f"{path}.grad_clip_value", "grad_clip_norm is given too; Lightning clips one way, give one")
    clipped = next((key for key, value in clip.items() if value is not None), None)
    if larc is not None and clipped is not None and not larc.allow_grad_clip:
        raise ConfigError(f"{path}.{clipped}", "LARC bounds the step already; larc.allow_grad_clip: true allows both")


@dataclass
class _Block:
    """A mapping of the config while it is taken apart; knows where each value was written."""

    values: dict[str, Any]
    path: str
    paths: dict[str, str]

    @classmethod
    def of(cls, value: Any, path: str) -> "_Block":
        if not isinstance(value, Mapping):
            raise ConfigError(path, f"expected a mapping, got {value!r}")
        return cls(dict(value), path, {key: f"{path}.{key}" for key in value})

    def take_name(self, kind: str) -> str:
        name = self.values.pop("name", None)
        if not isinstance(name, str):
            given = "missing" if name is None else f"expected a text, got {name!r}"
            raise ConfigError(f"{self.path}.name", f"{given}; which {kind}?")
        return name

    def rename(self, aliases: Mapping[str, str]) -> None:
        for alias, key in aliases.items():
            if alias in self.values:
                self._add(key, self.values.pop(alias), self.paths[alias])

    def unpack_legacy_args(self, class_name: str) -> None:
        """NeMo's older grammar: `args: {name: auto, params: {...}}`, or the arguments right in `args`."""
        if (legacy := self.values.pop("args", None)) is None:
            return
        outer = _Block.of(legacy, f"{self.path}.args")
        chosen = outer.values.pop("name", "auto")
        own_names = {"auto", f"{class_name}_params".casefold(), f"{class_name}Params".casefold()}
        if not isinstance(chosen, str) or chosen.casefold() not in own_names:
            raise ConfigError(f"{outer.path}.name", f"{chosen!r} does not belong to {class_name}; write auto")
        blocks = [outer]
        if (params := outer.values.pop("params", None)) is not None:
            blocks.append(_Block.of(params, f"{outer.path}.params"))
        for block in blocks:
            for key, value in block.values.items():
                self._add(key, value, block.paths[key])

    def _add(self, key: str, value: Any, path: str) -> None:
        if self.values.get(key) is not None and value is not None:
            raise ConfigError(path, f"{value!r}, but {self.paths[key]} is {self.values[key]!r}; give one")
        if self.values.get(key) is None:
            self.values[key], self.paths[key] = value, path

    def split(
        self, fields: Mapping[str, Argument], arguments: Mapping[str, Argument], filled_in: str | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Our own keys, defaults included, and the class's arguments, as far as given; every value checked."""
        known = {**arguments, **fields}
        for key in self.values:
            if key not in known:
                allowed = (name for name, argument in known.items() if argument.from_data)
                raise ConfigError(self.paths[key], f"unknown key{choices(key, allowed)}")
        ours = {key: argument.default for key, argument in fields.items()}
        theirs: dict[str, Any] = {}
        for key, value in self.values.items():
            (ours if key in fields else theirs)[key] = known[key].convert(value, self.paths[key])
        for key, argument in arguments.items():
            if argument.required and key not in theirs and key not in fields and key != filled_in:
                raise ConfigError(f"{self.path}.{key}", f"missing; {argument.wanted}")
        return ours, theirs


def _sched_of_block(
    value: Any, args: Mapping[str, Any], rules: Iterable[ParamGroupRule], path: str
) -> SchedConfig | None:
    """The schedule, which does not overrule what the rest of the block says."""
    if value is None:
        return None
    sched = _sched(value, path)
    said = {*args, *(key for rule in rules for key in rule.options)}
    check_lr_is_said(sched, args, rules_set_lr=any("lr" in rule.options for rule in rules))
    return keep_momentum(sched) if {"momentum", "betas"} & said else sched


def _sched(value: Any, path: str) -> SchedConfig:
    block = _Block.of(value, path)
    entry = get_scheduler(block.take_name("scheduler"), f"{path}.name")
    block.unpack_legacy_args(entry.name)
    block.rename(_SCHED_ALIASES)
    for key in _NEMO_RUNTIME_KEYS:
        if block.values.pop(key, None) is not None:
            raise ConfigError(block.paths[key], "NeMo fills this in at run time, here the trainer is asked; remove it")
    has_warmup = not WARMUP_KEYS.keys().isdisjoint(entry_arguments(entry))
    fields, args = _scheduler_args(block, entry, SCHED_KEYS if has_warmup else {**SCHED_KEYS, **WARMUP_KEYS})
    spec = SchedulerSpec(name=entry.name, args=args, path=path)
    sched = SchedConfig(
        name=entry.name,
        args=args,
        path=path,
        max_steps=_length(fields["max_steps"], f"{path}.max_steps"),
        max_epochs=_length(fields["max_epochs"], f"{path}.max_epochs"),
        interval=fields["interval"] or own_interval(spec),
        frequency=fields["frequency"],
        monitor=fields["monitor"],
        strict=fields["strict"],
        log_name=fields["log_name"],
        **{key: fields.get(key) for key in WARMUP_KEYS},
    )
    _check_warmup(sched)
    _check_sched(sched, fields["reduce_on_plateau"])
    return sched


def _scheduler_args(
    block: _Block, entry: Entry, fields: Mapping[str, Argument]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our own keys and the scheduler's arguments; schedulers inside of schedulers are parsed in their turn."""
    arguments = entry_arguments(entry)
    arguments.pop("last_epoch", None)
    if block.values.pop("last_epoch", -1) not in (-1, None):
        problem = "only -1; a run is continued from its checkpoint, trainer.fit(..., ckpt_path=...)"
        raise ConfigError(block.paths["last_epoch"], problem)
    inner = {}
    for key in [key for key, argument in arguments.items() if argument.takes_schedulers and key in block.values]:
        values = block.values.pop(key)
        if not isinstance(values, list) or not values:
            raise ConfigError(block.paths[key], f"expected a list of schedulers, got {values!r}")
        inner[key] = [_inner_scheduler(value, f"{block.paths[key]}[{index}]") for index, value in enumerate(values)]
        del arguments[key]
    if entry.length is not None and entry.length not in fields and block.values.get(entry.length, 0) is None:
        del block.values[entry.length]
    ours, theirs = block.split(fields, arguments, filled_in=entry.length)
    _check_arguments(entry, theirs, block.path)
    return ours, {**theirs, **inner}


def _inner_scheduler(value: Any, path: str) -> SchedulerSpec:
    block = _Block.of(value, path)
    entry = get_scheduler(block.take_name("scheduler"), f"{path}.name")
    block.unpack_legacy_args(entry.name)
    return SchedulerSpec(name=entry.name, args=_scheduler_args(block, entry, {})[1], path=path)


def _check_warmup(sched: SchedConfig) -> None:
    given = [key for key in WARMUP_KEYS if getattr(sched, key) is not None]
    if not given:
        return
    key, value, path = given[0], getattr(sched, given[0]), f"{sched.path}.{given[0]}"
    if len(given) > 1:
        raise ConfigError(f"{sched.path}.{given[1]}", f"{key} is given too; give one")
    if value < 0 or (key == "warmup_ratio" and value > 1):
        must = "in 0..1" if key == "warmup_ratio" else "at least 0"
        raise ConfigError(path, f"{value} is out of range; must be {must}")
    if sched.reduce_on_plateau:
        raise ConfigError(path, f"{sched.name} follows a metric and cannot come after a warmup")
    if key == "warmup_steps" and sched.interval == "epoch":
        problem = f"{value} counts optimizer steps, but {sched.name} is stepped once per epoch"
        cure = "warmup_epochs, or interval: step, in which its other arguments count optimizer steps too"
        raise ConfigError(path, f"{problem}; give {cure}")


def _check_sched(sched: SchedConfig, said_plateau: bool | None) -> None:
    """What no single key shows."""
    entry, path = sched.entry, sched.path
    if said_plateau is not None and said_plateau != sched.reduce_on_plateau:
        does = "does" if sched.reduce_on_plateau else "does not"
        raise ConfigError(f"{path}.reduce_on_plateau", f"{said_plateau}, but {sched.name} {does} watch a metric")
    if sched.reduce_on_plateau and sched.monitor is None:
        raise ConfigError(f"{path}.monitor", f"missing; {sched.name} needs the name of a logged metric")
    if sched.frequency < 1:
        raise ConfigError(f"{path}.frequency", f"{sched.frequency} is out of range; must be at least 1")
    if sched.max_steps is not None and sched.max_epochs is not None:
        problem = f"{sched.max_epochs}, but max_steps is {sched.max_steps}; give one"
        raise ConfigError(f"{path}.max_epochs", problem)
    length = "max_steps" if sched.max_steps is not None else "max_epochs" if sched.max_epochs is not None else None
    if length is not None and not sched.needs_length:
        own = f"its {entry.length} is given" if entry.length else f"{sched.name} has no length"
        raise ConfigError(f"{path}.{length}", f"{getattr(sched, length)} has no effect: {own}; remove it")
    if sched.max_steps is not None and sched.interval == "epoch":
        problem = f"{sched.max_steps} counts optimizer steps, but {sched.name} is stepped once per epoch"
        raise ConfigError(f"{path}.max_steps", f"{problem}; give max_epochs or interval: step")
    if sched.frequency > 1 and sched.needs_length:
        problem = f"{sched.frequency}, but {sched.name} has the length of the run and steps every {sched.interval}"
        raise ConfigError(f"{path}.frequency", f"{problem}; must be 1")


def _rule(value: Any, path: str, entry: Entry) -> ParamGroupRule:
    block = _Block.of(value, path)
    arguments = {key: replace(argument, default=None) for key, argument in entry_arguments(entry).items()}
    fields, options = block.split(RULE_KEYS, arguments)
    _check_arguments(entry, options, path)
    match, module_type = _texts(fields["match"]), _texts(fields["module_type"])
    if not match and not module_type:
        raise ConfigError(f"{path}.match", "missing; which parameters? bias, norm, 1d, globs, or module_type")
    if not fields["larc"]:
        options["larc"] = False
    return ParamGroupRule(match=match, module_type=module_type, options=options, name=fields["name"], path=path)


def _larc(value: Any, path: str) -> LarcConfig | None:
    if value is None or value is False:
        return None
    block = _Block.of({} if value is True else value, path)
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


def _length(value: int | None, path: str) -> int | None:
    if value is None or value == -1:  # NeMo's "computed at runtime"
        return None
    if value < 1:
        raise ConfigError(path, f"{value} is out of range; must be at least 1, or null for the length of the run")
    return value


def _positive(value: float | None, path: str) -> float | None:
    if value is not None and value <= 0:
        raise ConfigError(path, f"{value} is out of range; must be above 0, or null for no clipping")
    return value
