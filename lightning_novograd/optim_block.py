"""The optim block: what it may say, as frozen dataclasses of plain Python values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lightning_novograd.construct import SchedulerSpec
from lightning_novograd.optim.param_groups import ParamGroupRule


@dataclass(frozen=True, kw_only=True)
class SchedConfig(SchedulerSpec):
    """`optim.sched`: a scheduler, its arguments, and when Lightning steps it.

    Args:
        max_steps: optimizer steps of the schedule; None: those of the run.
        max_epochs: the same in epochs (NeMo's `t_max_epochs`).
        interval: `"step"` or `"epoch"`.
        frequency: as in Lightning: every so many intervals.
        monitor: the logged metric that `ReduceLROnPlateau` watches.
        strict: as in Lightning: a missing `monitor` is an error.
        log_name: under which `LearningRateMonitor` logs it (Lightning's `name`).

    """

    max_steps: int | None = None
    max_epochs: int | None = None
    interval: Literal["step", "epoch"] = "step"
    frequency: int = 1
    monitor: str | None = None
    strict: bool = True
    log_name: str | None = None

    @property
    def reduce_on_plateau(self) -> bool:
        """Whether the scheduler is stepped with the monitored metric."""
        return self.name == "ReduceLROnPlateau"


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
class OptimConfig:
    """The optim block.

    Args:
        name: registered optimizer.
        args: its arguments, `lr` included; what is absent has the class's default.
        sched: None: the LR is constant.
        larc: None: no LARC.
        no_decay: shorthands and globs of parameters without weight decay.
        param_groups: rules, first match wins.
        grad_clip_norm: bound of the norm of all gradients together, > 0.
        grad_clip_value: bound of each gradient element, > 0.
        path: of the block in the config, for errors.

    """

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    sched: SchedConfig | None = None
    larc: LarcConfig | None = None
    no_decay: tuple[str, ...] = ()
    param_groups: tuple[ParamGroupRule, ...] = ()
    grad_clip_norm: float | None = None
    grad_clip_value: float | None = None
    path: str = "optim"
