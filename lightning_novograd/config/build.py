"""Checked config + module -> optimizer, LARC around it, and Lightning's LR scheduler dict."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR, SequentialLR

from lightning_novograd.config.construct import SchedulerSpec, needs_length, new_larc, new_optimizer, new_scheduler
from lightning_novograd.config.parse import parse_optim
from lightning_novograd.config.schema import SchedConfig
from lightning_novograd.errors import ConfigError
from lightning_novograd.log import rank_zero_logger
from lightning_novograd.optim.param_groups import build_param_groups

log = rank_zero_logger(__name__)


@dataclass(frozen=True)
class RunLength:
    """How long a run is, as far as that is known.

    Args:
        steps: optimizer steps, >= 1; None: unknown.
        source: where that comes from, or why it is unknown; shown to the user.
        epochs: of the run; None: unknown.
        steps_per_epoch: optimizer steps in one epoch, or a function of its index (from 0) if they are not as many in
            each; None: unknown.
        trial: not the run's length but one in which every schedule fits (`fast_dev_run`).

    """

    steps: int | None
    source: str
    epochs: int | None = None
    steps_per_epoch: int | Callable[[int], int] | None = None
    trial: bool = False


def build_optimizers(
    cfg: Any, module: nn.Module, *, max_steps: int | RunLength | Callable[[], int | RunLength] | None = None
) -> dict[str, Any]:
    """Optimizer and scheduler of the optim block `cfg`, as Lightning's `configure_optimizers` returns them.

    Args:
        cfg: an `OptimConfig`, or whatever `parse_optim` takes.
        module: whose parameters are optimized.
        max_steps: length of the run in optimizer steps, for schedules whose config does not set one. A function is
            called at most once, after everything else is built, and only if the length is needed.

    Returns:
        `{"optimizer": ...}`, and with a schedule `"lr_scheduler": {"scheduler", "interval", "frequency", ...}`.

    Raises:
        ConfigError: a block that does not parse or does not fit the module or the length of the run.

    Example:
        >>> block = {"name": "sgd", "lr": 0.1, "sched": {"name": "cosine", "warmup_steps": 1}}
        >>> built = build_optimizers(block, nn.Linear(2, 1), max_steps=100)
        >>> built["lr_scheduler"]["scheduler"].get_last_lr(), built["lr_scheduler"]["interval"]
        ([0.05], 'step')

    """
    config = parse_optim(cfg)
    groups = build_param_groups(module, config.param_groups, config.no_decay, config.path)
    params = groups if len(groups) > 1 or len(groups[0]) > 1 else groups[0]["params"]
    optimizer = new_optimizer(config.name, params, config.args, config.path)
    if config.larc is not None:
        optimizer = new_larc(optimizer, config.larc.args, f"{config.path}.larc")
    built: dict[str, Any] = {"optimizer": optimizer}
    if config.sched is not None:
        built["lr_scheduler"] = build_scheduler(config.sched, optimizer, max_steps)
    return built


def build_scheduler(
    sched: SchedConfig, optimizer: Optimizer, max_steps: int | RunLength | Callable[[], int | RunLength] | None = None
) -> dict[str, Any]:
    """Lightning's `lr_scheduler` dict of `sched` on `optimizer`; `max_steps` as in `build_optimizers`."""
    run = cache(lambda: _asked(max_steps))
    length, source = _length(sched, run) if needs_length(sched) else (None, "")
    explained, whose = "", "schedule"
    if length is not None:
        whose = "schedule" if source.startswith(sched.path) else "run"
        explained = f"the {whose} has {length} {'optimizer steps' if sched.interval == 'step' else 'epochs'}: {source}"
    entry: dict[str, Any] = {
        "scheduler": new_scheduler(sched, optimizer, length, explained),
        "interval": sched.interval,
        "frequency": sched.frequency,
        "strict": sched.strict,
        "reduce_on_plateau": sched.reduce_on_plateau,
    }
    if whose == "schedule":
        _refuse_longer_run(sched, entry["scheduler"], run)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])  # as all schedulers do but ReduceLROnPlateau
    if sched.monitor is not None:
        entry["monitor"] = sched.monitor
    if sched.log_name is not None:
        entry["name"] = sched.log_name
    log.info("Schedule %s, stepped every %s%s", sched.name, sched.interval, f"; {explained}" if explained else "")
    return entry


def _length(sched: SchedConfig, length_of_run: Callable[[], RunLength]) -> tuple[int | None, str]:
    """What the scheduler counts to, steps or epochs, and where that comes from."""
    if sched.max_steps is not None:
        return sched.max_steps, f"{sched.path}.max_steps"
    if sched.interval == "epoch" and sched.max_epochs is not None:
        return sched.max_epochs, f"{sched.path}.max_epochs"
    run = length_of_run()
    if sched.max_epochs is not None:
        if run.steps_per_epoch is None:
            raise ConfigError(f"{sched.path}.max_epochs", f"the length of an epoch is unknown: {run.source}")
        source = f"{sched.path}.max_epochs={sched.max_epochs}"
        if callable(run.steps_per_epoch):
            return sum(map(run.steps_per_epoch, range(sched.max_epochs))), f"{source} with a changing accumulation"
        return sched.max_epochs * run.steps_per_epoch, f"{source} x {run.steps_per_epoch} steps per epoch"
    length = run.steps if sched.interval == "step" else run.epochs
    if length is None and _required(sched):
        raise ConfigError(
            f"{sched.path}.max_{sched.interval}s",
            f"{sched.name} needs the length of the run, which is unknown: {run.source}; set it here",
        )
    return length, run.source


def _asked(max_steps: int | RunLength | Callable[[], int | RunLength] | None) -> RunLength:
    asked = max_steps() if callable(max_steps) else max_steps
    return asked if isinstance(asked, RunLength) else RunLength(asked, "max_steps" if asked else "it was not given")


def _refuse_longer_run(sched: SchedConfig, scheduler: Any, length_of_run: Callable[[], RunLength]) -> None:
    """Where other schedulers stay at their last LR, torch's OneCycleLR raises: better now than in the middle."""
    if not list(_cycles(sched, scheduler, 0)):
        return
    run = length_of_run()
    length = run.steps if sched.interval == "step" else run.epochs
    if length is None or run.trial:
        return
    for spec, total_steps, steps in _cycles(sched, scheduler, length // sched.frequency):
        if steps > total_steps:
            own = next((name for name in ("total_steps", "epochs") if spec.args.get(name) is not None), None)
            key = own or ("max_steps" if sched.max_steps is not None else "max_epochs")
            problem = f"OneCycleLR ends after {total_steps} {sched.interval}s, and the run has {length}: {run.source}"
            cure = "; leave it out and the cycle is as long as the run" if spec is sched else ""
            raise ConfigError(f"{spec.path}.{key}", problem + cure)


def _cycles(spec: SchedulerSpec, scheduler: Any, steps: int) -> Iterator[tuple[SchedulerSpec, int, int]]:
    """Every OneCycleLR in a scheduler that is stepped `steps` times: its spec, its length, how often it is stepped."""
    if isinstance(scheduler, OneCycleLR):
        yield spec, scheduler.total_steps, steps
    milestones = scheduler._milestones if isinstance(scheduler, SequentialLR) else []
    for index, member in enumerate(getattr(scheduler, "_schedulers", ())):
        begin, end = 0, steps
        if milestones:
            begin = ([0, *milestones])[index]
            end = min([steps, *(milestone - 1 for milestone in milestones[index : index + 1])])
        yield from _cycles(spec.args["schedulers"][index], member, max(0, end - begin))


def _required(sched: SchedConfig) -> bool:
    """Whether the scheduler cannot do without a length: it has no default, or only one that refuses to work."""
    entry = sched.entry
    return entry.arguments[str(entry.length)].required or entry.length != "max_steps"
