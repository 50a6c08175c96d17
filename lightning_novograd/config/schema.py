"""The optim block: its keys beside the arguments of the classes it names, and what parsing makes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch.optim.lr_scheduler import SequentialLR

from lightning_novograd.config.arguments import REQUIRED, Argument, arguments_of
from lightning_novograd.errors import ConfigError
from lightning_novograd.large_batch.plan import LrRule
from lightning_novograd.large_batch.ramp import BatchRamp, solve_batch_ramp
from lightning_novograd.optim.larc import LARC
from lightning_novograd.optim.layer_decay import LayerDecay
from lightning_novograd.optim.param_groups import ParamGroupRule
from lightning_novograd.registry import Entry, get_scheduler


@dataclass(frozen=True, kw_only=True)
class SchedulerSpec:
    """A scheduler and its arguments.

    Args:
        name: registered name.
        args: constructor arguments, plain values; a list of `SchedulerSpec` where the class takes schedulers.
        path: where the config has it.

    """

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    path: str = "optim.sched"

    @property
    def entry(self) -> Entry:
        """The registered class."""
        return get_scheduler(self.name, f"{self.path}.name")

    @property
    def members(self) -> list["SchedulerSpec"]:
        """The schedulers that this one is made of, if it is."""
        lists = (value for value in self.args.values() if isinstance(value, list))
        return [member for value in lists for member in value if isinstance(member, SchedulerSpec)]

    @property
    def is_sequence(self) -> bool:
        """Whether the members follow each other; others run side by side."""
        return issubclass(self.entry.cls, SequentialLR)

    @property
    def needs_length(self) -> bool:
        """Whether the class, or a member that runs to the end, takes the length of the run and the block has none."""
        members = self.members[-1:] if self.is_sequence else self.members
        return self.takes_length or any(member.needs_length for member in members)

    @property
    def takes_length(self) -> bool:
        """Whether the class takes the length of the run and the arguments leave it open."""
        entry = self.entry
        given = {name for name, value in self.args.items() if value is not None}
        said_in_parts = bool(entry.length_parts) and given.issuperset(entry.length_parts)
        return entry.length is not None and entry.length not in given and not said_in_parts


@dataclass(frozen=True, kw_only=True)
class SchedConfig(SchedulerSpec):
    """`optim.sched`: a scheduler, its arguments, and when Lightning steps it.

    Args:
        max_steps: optimizer steps of the schedule; None: those of the run.
        max_epochs: the same in epochs (NeMo's `t_max_epochs`).
        interval: `"step"` or `"epoch"`.
        frequency: every so many intervals: optimizer steps (Lightning itself counts batches of the epoch) or epochs.
        monitor: the logged metric that `ReduceLROnPlateau` watches.
        strict: as in Lightning: a missing `monitor` is an error.
        steps_per_batch: under manual optimization: how often its optimizer steps for each batch; None: once.
        log_name: under which `LearningRateMonitor` logs it (Lightning's `name`).
        warmup_steps: steps of a linear warmup before a scheduler that has none of its own.
        warmup_ratio: the same as a share of the schedule.
        warmup_epochs: the same in epochs.

    """

    max_steps: int | None = None
    max_epochs: int | None = None
    interval: Literal["step", "epoch"] = "step"
    frequency: int = 1
    monitor: str | None = None
    strict: bool = True
    steps_per_batch: float | None = None
    log_name: str | None = None
    warmup_steps: int | None = None
    warmup_ratio: float | None = None
    warmup_epochs: int | None = None

    @property
    def warmup(self) -> str | None:
        """The key that says how long the warmup is; None: there is none."""
        return next((key for key in WARMUP_KEYS if getattr(self, key) is not None), None)

    @property
    def needs_length(self) -> bool:
        """Whether the length of the run is asked for: by the scheduler, or for its warmup to fit."""
        return super().needs_length or self.warmup is not None

    @property
    def reduce_on_plateau(self) -> bool:
        """Whether the scheduler is stepped with the monitored metric."""
        return self.entry.watches_metric


@dataclass(frozen=True, kw_only=True)
class LarcConfig:
    """`optim.larc`: arguments of `LARC`.

    Args:
        args: what the block sets of LARC's constructor arguments.
        allow_grad_clip: whether gradient clipping may be on as well; both bound the step, so usually one is a mistake.

    """

    args: Mapping[str, Any] = field(default_factory=dict)
    allow_grad_clip: bool = False


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """`optim.ema`: the average of the weights that validation, checkpoints and the trained model have.

    Args:
        decay: what the average keeps at each update, at least 0, below 1.
        update_every_n_steps: optimizer steps between two updates, at least 1.
        update_starting_at_step: optimizer steps before the first update; null: 0.
        use_buffers: whether buffers that are no integers are averaged too; otherwise they are the model's.
        device: where the average is; cpu saves memory of the GPU, null: with the weights.

    """

    decay: float = 0.999
    update_every_n_steps: int = 1
    update_starting_at_step: int | None = None
    use_buffers: bool = True
    device: Literal["cpu"] | None = None


@dataclass(frozen=True, kw_only=True)
class LargeBatchConfig:
    """`optim.large_batch`: samples behind an optimizer step, for which Lightning's automatic optimization accumulates.

    Args:
        global_batch_size: of all steps; or pairs of the optimizer step at which a stage begins and its global batch.
        per_device_batch_size: samples of one forward pass on one device, >= 1.
        lr_scaling: how the LR follows the ratio to the first stage's batch.
        path: where the config has it.

    """

    global_batch_size: int | list[list[int]]
    per_device_batch_size: int
    lr_scaling: LrRule = "none"
    path: str = "optim.large_batch"

    def ramp(self, devices: int, num_nodes: int = 1) -> BatchRamp:
        """The stages on so many devices.

        Raises:
            ConfigError: one of them has no exact split there.

        """
        sizes = {"devices": devices, "num_nodes": num_nodes, "per_device_batch_size": self.per_device_batch_size}
        try:
            return solve_batch_ramp(self.global_batch_size, **sizes)
        except ConfigError as error:
            raise ConfigError(error.path.replace("large_batch", self.path, 1), error.problem) from None


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """An optimizer of a rule's own and its arguments.

    Args:
        name: registered name.
        args: constructor arguments, plain values; what is absent has the class's default.
        larc: None: no LARC around this optimizer alone.
        path: where the config has it.

    """

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    larc: LarcConfig | None = None
    path: str = "optim"


@dataclass(frozen=True, kw_only=True)
class RuleConfig(ParamGroupRule):
    """A rule of `optim.param_groups`: which parameters, and what differs for them.

    Args:
        optimizer: of these parameters; None: the block's.
        sched: their schedule; None: the block's.

    """

    optimizer: OptimizerSpec | None = None
    sched: SchedConfig | None = None

    @property
    def is_part(self) -> bool:
        """Whether its parameters need an optimizer object of their own."""
        return self.optimizer is not None or self.sched is not None


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optim block.

    Args:
        name: registered optimizer.
        args: its arguments, `lr` included; what is absent has the class's default.
        sched: None: the LR is constant.
        larc: None: no LARC.
        no_decay: shorthands and globs of parameters without weight decay.
        layer_decay: None: all layers have the same LR.
        param_groups: rules, first match wins.
        grad_clip_norm: bound of the norm of all gradients together, > 0.
        grad_clip_value: bound of each gradient element, > 0.
        ema: None: the weights are not averaged.
        large_batch: None: a step has as many samples as the Trainer says.
        module: the submodule whose parameters are optimized; empty: the whole module.
        path: of the block in the config, for errors.

    """

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    sched: SchedConfig | None = None
    larc: LarcConfig | None = None
    no_decay: tuple[str, ...] = ()
    layer_decay: LayerDecay | None = None
    param_groups: tuple[ParamGroupRule, ...] = ()
    grad_clip_norm: float | None = None
    grad_clip_value: float | None = None
    ema: EmaConfig | None = None
    large_batch: LargeBatchConfig | None = None
    module: str = ""
    path: str = "optim"

    @property
    def optimizer(self) -> OptimizerSpec:
        """The block's own optimizer, without what may be around it."""
        return OptimizerSpec(name=self.name, args=self.args, path=self.path)

    @property
    def optimizers(self) -> tuple[OptimizerSpec, ...]:
        """All optimizers: the block's own, then those of rules."""
        return (self.optimizer, *(spec for spec in map(own_optimizer, self.param_groups) if spec is not None))

    @property
    def optimizer_names(self) -> str:
        """Of all optimizers, once each, as checkpoints have it."""
        return ", ".join(dict.fromkeys(spec.name for spec in self.optimizers))

    @property
    def scheds(self) -> tuple[SchedConfig, ...]:
        """All schedules: the block's own, then those of rules."""
        return tuple(sched for sched in (self.sched, *map(own_sched, self.param_groups)) if sched is not None)

    @property
    def stepped(self) -> SchedConfig | None:
        """A schedule whose interval and frequency are those of all, the block's if it has one."""
        return next(iter(self.scheds), None)

    @property
    def clips(self) -> bool:
        """Whether gradients are clipped."""
        return self.grad_clip_norm is not None or self.grad_clip_value is not None


def own_optimizer(rule: ParamGroupRule | None) -> OptimizerSpec | None:
    """The optimizer of a rule's own, if it has one."""
    return rule.optimizer if isinstance(rule, RuleConfig) else None


def own_sched(rule: ParamGroupRule | None) -> SchedConfig | None:
    """The schedule of a rule's own, if it has one."""
    return rule.sched if isinstance(rule, RuleConfig) else None


# What the block and its parts take beside the arguments of the classes they name
OPTIM_KEYS = {
    "ema": Argument("ema", float | dict | None, None, "decay of an average of the weights, or its arguments"),
    "grad_clip_norm": Argument("grad_clip_norm", float | None, None, "bound of the norm of all gradients together"),
    "grad_clip_value": Argument("grad_clip_value", float | None, None, "bound of each gradient element"),
    "larc": Argument("larc", dict | bool | None, None, "LARC's arguments, or true for its defaults"),
    "large_batch": Argument("large_batch", dict | None, None, "samples behind each optimizer step, by accumulation"),
    "layer_decay": Argument(
        "layer_decay", float | dict | None, None, "factor of the LR from each layer to the one below"
    ),
    "module": Argument("module", str | None, None, "the submodule that is optimized, by its path; null: all"),
    "no_decay": Argument("no_decay", list[str] | str | None, None, "parameters without weight decay"),
    "param_groups": Argument("param_groups", list[dict] | None, None, "rules, first match wins"),
    "sched": Argument("sched", dict | None, None, "the learning-rate schedule"),
}
SCHED_KEYS = {
    "max_steps": Argument("max_steps", int | None, None, "optimizer steps of the schedule; null: of the run"),
    "max_epochs": Argument("max_epochs", int | None, None, "the same in epochs (NeMo: t_max_epochs)"),
    "interval": Argument("interval", Literal["step", "epoch"] | None, None, "null: the scheduler's own"),
    "frequency": Argument("frequency", int, 1, "step it every so many intervals"),
    "monitor": Argument("monitor", str | None, None, "metric for ReduceLROnPlateau"),
    "reduce_on_plateau": Argument("reduce_on_plateau", bool | None, None, "null: as the scheduler is"),
    "strict": Argument("strict", bool, True, "a monitor that is not logged is an error"),
    "steps_per_batch": Argument(
        "steps_per_batch", float | None, None, "manual optimization: optimizer steps per batch"
    ),
    "log_name": Argument("log_name", str | None, None, "name for LearningRateMonitor (Lightning's `name`)"),
}
# Beside them, where the scheduler has no warmup of its own
WARMUP_KEYS = {
    "warmup_steps": Argument("warmup_steps", int | None, None, "steps of a linear warmup before the schedule"),
    "warmup_ratio": Argument("warmup_ratio", float | None, None, "the same as a share of the schedule, 0..1"),
    "warmup_epochs": Argument("warmup_epochs", int | None, None, "the same in epochs"),
}
RULE_KEYS = {
    "match": Argument("match", list[str] | str | None, None, "bias, norm, 1d, or globs over parameter names"),
    "module_type": Argument("module_type", list[str] | str | None, None, "globs over class names of modules"),
    "name": Argument("name", str, "", "of the group, in logs"),
    "optimizer": Argument("optimizer", str | dict | None, None, "of these parameters; null: the block's"),
    "sched": Argument("sched", dict | None, None, "schedule of these parameters; null: the block's"),
    "lr_mult": Argument("lr_mult", float | None, None, "factor of the optimizer's lr"),
    "wd_mult": Argument("wd_mult", float | None, None, "factor of the optimizer's weight_decay"),
    "larc": Argument("larc", bool, True, "false: LARC leaves the group alone"),
}
LAYER_DECAY_KEYS = {
    "decay": Argument("decay", float, REQUIRED, "factor, above 0 and up to 1"),
    "layers": Argument(
        "layers", list[str] | str, LayerDecay.layers, "globs from input to output, a method of the module, or auto"
    ),
}
EMA_KEYS = arguments_of(EmaConfig, skip=())
LARGE_BATCH_KEYS = {
    "global_batch_size": Argument(
        "global_batch_size", int | list[list[int]], REQUIRED, "samples of each step, or pairs [step, samples]"
    ),
    "per_device_batch_size": Argument(
        "per_device_batch_size", int, REQUIRED, "samples of a forward pass on one device, as the loader deals them"
    ),
    "lr_scaling": Argument(
        "lr_scaling", LrRule, LargeBatchConfig.lr_scaling, "factor of the LR by the ratio to the first stage's batch"
    ),
}
LARC_ARGUMENTS = arguments_of(LARC, skip=("optimizer",))
LARC_KEYS = {
    "allow_grad_clip": Argument("allow_grad_clip", bool, False, "LARC and gradient clipping together are meant"),
}
