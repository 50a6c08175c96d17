"""What the ``large_batch`` block makes of the optim block: its learning rates and its warmup."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig

from lightning_novograd.errors import ConfigError
from lightning_novograd.large_batch.plan import BatchPlan, LrRule, scale_lr
from lightning_novograd.lr_scheduler.pytorch import own_lrs
from lightning_novograd.recipes.common.settings.large_batch import LargeBatchSettings
from lightning_novograd.recipes.common.settings.run import CommonSettings
from lightning_novograd.registry import get_scheduler

Scale = Callable[[float], float]

_LR_OF_REFERENCE = "large_batch.reference.lr"


@dataclass(frozen=True)
class PlannedLr:
    """The learning rate of a run.

    Args:
        lr: of the block, after scaling; None: the block has none, and the optimizer's default holds.
        base: what was scaled; None: nothing.
        source: where `base` stands in the config, or `lr` where nothing was scaled.
        batch: global batch of the run.
        reference: that at which `base` was tuned.
        rule: of `scale_lr`.

    Example:
        >>> print(PlannedLr(0.04, 0.02, "optim.lr", 1024, 256, "sqrt"))
        LR 0.04 = 0.02 (optim.lr, tuned at a global batch of 256) x sqrt(1024 / 256)
    """

    lr: float | None
    base: float | None = None
    source: str = "optim.lr"
    batch: int = 0
    reference: int = 0
    rule: str = "none"

    def __str__(self) -> str:
        if self.lr is None:
            return "LR: the optimizer's own, optim.lr is not given"
        if self.base is None:
            return f"LR {self.lr:g} ({self.source})"
        ratio = f"{self.batch} / {self.reference}"
        factor = {"linear": f" x {ratio}", "sqrt": f" x sqrt({ratio})"}.get(self.rule, ", not scaled")
        return f"LR {self.lr:.6g} = {self.base:g} ({self.source}, tuned at a global batch of {self.reference}){factor}"


def planned_optim(settings: CommonSettings, plan: BatchPlan) -> tuple[dict[str, Any], PlannedLr]:
    """The optim block of the run, and its learning rate in words.

    All learning rates of the block are those of the reference batch, so all are scaled alike: ``lr``, those of rules
    and of their optimizers, and those that a schedule has in place of them (``max_lr`` of OneCycleLR). Floors
    (``min_lr``, ``eta_min``) and factors (``lr_mult``) stay.

    Args:
        settings: whose ``optim`` and ``large_batch`` blocks count.
        plan: of the batches.

    Raises:
        ConfigError: the same is said twice, or there is no learning rate to scale, or no schedule to warm up.
    """
    large_batch = settings.large_batch
    refuse_said_twice(large_batch, command_line())
    optim = dict(settings.optim)
    if optim.get("large_batch") is not None:
        problem = "is for loaders of one length; the recipe's global batch is large_batch.global_batch_size"
        raise ConfigError("optim.large_batch", problem)
    if large_batch.warmup_ratio is not None:
        optim["sched"] = _warmed_up(optim.get("sched"), large_batch.warmup_ratio)
    reference, rule = large_batch.reference, large_batch.lr_scaling
    if reference.global_batch_size is None or rule is None:
        lr = optim.get("lr")
        return optim, PlannedLr(lr if _is_number(lr) else None)
    lr = optim.get("lr") if reference.lr is None else reference.lr
    if lr is None or not _is_number(lr):
        raise ConfigError(_LR_OF_REFERENCE, f"is missing, and optim.lr is {lr!r}: there is nothing to scale")
    size, tuned = plan.global_batch_size, reference.global_batch_size

    def scale(tuned_lr: float) -> float:
        return scale_lr(tuned_lr, size, tuned, cast(LrRule, rule))

    optim = _scaled_block(optim, scale, "optim", replaced=reference.lr is not None)
    optim["lr"] = scale(lr)
    source = "optim.lr" if reference.lr is None else _LR_OF_REFERENCE
    return optim, PlannedLr(optim["lr"], lr, source, size, tuned, rule)


def command_line() -> set[str]:
    """The keys that the user has given on the command line; none where Hydra did not begin the run."""
    said = HydraConfig.get().overrides.task if HydraConfig.initialized() else ()
    return {override.partition("=")[0].lstrip("+~") for override in said}


def refuse_said_twice(large_batch: LargeBatchSettings, said: Collection[str]) -> None:
    """Refuse what the user says of something that the ``large_batch`` block says too.

    What an option of ``optim`` or ``data`` brings gives way to the block: each has an LR, a warmup, a batch size.

    Args:
        large_batch: the block.
        said: keys of the command line.

    Raises:
        ConfigError: both.
    """
    ours: dict[str, tuple[str, Any]] = {
        "optim.lr": ("reference.lr", large_batch.reference.lr),
        "optim.sched.warmup_ratio": ("warmup_ratio", large_batch.warmup_ratio),
        "data.batch_size": ("max_per_device_batch_size", large_batch.max_per_device_batch_size),
    }
    for key, (name, value) in ours.items():
        if value is not None and key in said:
            raise ConfigError(key, f"and large_batch.{name}={value} decide the same; give one of them")


def _warmed_up(sched: Any, ratio: float) -> dict[str, Any]:
    path = "large_batch.warmup_ratio"
    if sched is None:
        raise ConfigError(path, f"is {ratio:g}, but optim.sched is null: without a schedule there is no warmup")
    if not isinstance(sched, Mapping):
        raise ConfigError("optim.sched", f"must be a mapping, not {sched!r}")
    values = {**sched, **(sched.get("args") or {})}
    for key in ("warmup_steps", "warmup_epochs"):
        if values.get(key) is not None:
            problem = f"is {ratio:g}, but optim.sched.{key} is {values[key]}; give one of them (null for the other)"
            raise ConfigError(path, problem)
    if isinstance(sched.get("args"), Mapping):
        return {**sched, "args": {**sched["args"], "warmup_ratio": ratio}}
    return {**sched, "warmup_ratio": ratio}


def _scaled_block(block: Mapping[str, Any], scale: Scale, path: str, replaced: bool = False) -> dict[str, Any]:
    """A block, a rule or the optimizer of a rule, with scaled LRs.

    Args:
        block: as the config has it.
        scale: makes an LR one of the run.
        path: of the block.
        replaced: whether the block's LR is another one than it says, of which the schedule's may know nothing.
    """
    scaled = dict(block)
    for key, value in block.items():
        if key == "lr" and _is_number(value):
            scaled[key] = scale(value)
        elif key in ("args", "optimizer") and isinstance(value, Mapping):
            scaled[key] = _scaled_block(value, scale, f"{path}.{key}")
        elif key == "param_groups" and isinstance(value, list):
            rules = enumerate(value)
            scaled[key] = [
                _scaled_block(rule, scale, f"{path}.{key}[{i}]") if isinstance(rule, Mapping) else rule
                for i, rule in rules
            ]
        elif key == "sched" and isinstance(value, Mapping):
            scaled[key] = _scaled_sched(value, scale, f"{path}.{key}", replaced)
    return scaled


def _scaled_sched(sched: Mapping[str, Any], scale: Scale, path: str, replaced: bool) -> dict[str, Any]:
    """A schedule whose own LRs, in place of the param groups', are scaled, and those of its members."""
    if not isinstance(sched.get("name"), str):
        return dict(sched)  # the parser says what is wrong
    cls = get_scheduler(sched["name"], f"{path}.name").cls
    if not getattr(cls, "uses_base_lr", True):
        problem = f"{sched['name']} sets an LR of its own, on which large_batch.lr_scaling has no effect"
        raise ConfigError(f"{path}.name", problem)
    names = own_lrs(cls)
    scaled = dict(sched)
    for key, value in sched.items():
        if key == "args" and isinstance(value, Mapping):
            inner = _scaled_sched({**value, "name": sched["name"]}, scale, path, replaced)
            scaled[key] = {name: inner[name] for name in value}
        elif key in names:
            if replaced:
                problem = f"is an LR of the schedule's own, of which {_LR_OF_REFERENCE} says nothing; leave that out"
                raise ConfigError(f"{path}.{key}", f"{problem}, and this one is scaled")
            values = value if isinstance(value, list) else [value]
            made = [scale(one) if _is_number(one) else one for one in values]
            scaled[key] = made if isinstance(value, list) else made[0]
        elif isinstance(value, list) and any(isinstance(member, Mapping) for member in value):
            scaled[key] = [
                _scaled_sched(member, scale, f"{path}.{key}[{i}]", replaced) if isinstance(member, Mapping) else member
                for i, member in enumerate(value)
            ]
    return scaled


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
