"""Manual optimization: whether a schedule is stepped as often as its length supposes."""

import warnings
from collections.abc import Iterable
from typing import Any

from lightning_novograd.config.schema import OptimConfig, SchedConfig
from lightning_novograd.errors import ConfigError

_FEW = 2  # steps more or less than expected


def check_pace(config: OptimConfig, automatic: bool) -> None:
    """Refuse `steps_per_batch` where Lightning steps.

    Args:
        config: the block.
        automatic: whether the module has automatic optimization.

    Raises:
        ConfigError: it is given under automatic optimization.

    """
    for sched in config.scheds:
        if automatic and sched.steps_per_batch is not None:
            problem = (
                f"{sched.steps_per_batch:g}, but Lightning steps the optimizer and counts; for manual optimization"
            )
            raise ConfigError(f"{sched.path}.steps_per_batch", problem)


def warn_of_other_pace(configs: Iterable[OptimConfig], schedulers: Iterable[Any], batches: int) -> None:
    """Warn of each schedule that was not stepped as often in the first epoch as its length supposes.

    Args:
        configs: blocks with a schedule.
        schedulers: theirs, which began with step 0.
        batches: of the epoch.

    """
    for config, scheduler in zip(configs, schedulers, strict=True):
        sched = config.stepped
        if sched is None or sched.interval != "step":
            continue
        expected = batches * (sched.steps_per_batch or 1.0) / sched.frequency
        made = scheduler.last_epoch
        if abs(made - expected) < _FEW and (made > 0 or expected < 1):
            continue
        if made == 0:
            problem = f"was never stepped in an epoch of {batches} batches, so the LR stays what it is"
            cure = "call self.lr_schedulers().step() after optimizer.step()"
        elif sched.max_steps is not None:
            continue  # whoever says the length counts
        else:
            problem = f"was stepped {made} times in an epoch of {batches} batches, and its length supposes {expected:g}"
            cure = f"say {sched.path}.steps_per_batch: {_pace(sched, made, batches):.4g}, or its max_steps"
        warnings.warn(f"{sched.path}: {sched.name} {problem}; {cure}", UserWarning, stacklevel=2)


def _pace(sched: SchedConfig, made: int, batches: int) -> float:
    return made * sched.frequency / batches
