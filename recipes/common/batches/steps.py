"""How many steps a run has, and how many of them warm up."""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_novograd.config.length import RunLength
from lightning_novograd.config.pipeline import build_optimizers
from lightning_novograd.config.schedules.composed import policies
from lightning_novograd.large_batch.plan import BatchPlan
from lightning_novograd.recipes.common.data.steps import EpochSteps, limited

_OF_TRAINING = ("ema",)  # keys of the optim block that need more than an optimizer


def count_steps(epoch: EpochSteps | None, plan: BatchPlan, trainer: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Optimizer steps of an epoch and of a run, as the Trainer will make them; None where that is not known.

    Args:
        epoch: of the whole training set; None: unknown.
        plan: of the batches.
        trainer: the ``trainer`` block, whose limits count.

    Raises:
        ConfigError: ``trainer.limit_train_batches`` cuts a global batch in two.

    Example:
        >>> plan = BatchPlan(24, 4, 2, 1, 3)
        >>> count_steps(EpochSteps(steps=10), plan, {"max_epochs": 3, "max_steps": 25})
        (10, 25)
    """
    trainer = as_limited(trainer)
    most = trainer.get("max_steps", -1)
    steps = most if isinstance(most, int) and most >= 0 else None
    if epoch is None:
        return None, steps
    accumulate = plan.accumulate_grad_batches
    batches = limited(epoch.batches(accumulate), accumulate, trainer.get("limit_train_batches"))
    per_epoch = math.ceil(batches / accumulate)
    if (epochs := epochs_of(trainer)) is None:
        return per_epoch, steps
    return per_epoch, epochs * per_epoch if steps is None else min(steps, epochs * per_epoch)


def as_limited(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The ``trainer`` block with the limits that its ``fast_dev_run`` and ``overfit_batches`` stand for.

    Example:
        >>> as_limited({"max_epochs": 8, "fast_dev_run": True})
        {'max_epochs': 1, 'fast_dev_run': True, 'max_steps': 1, 'limit_train_batches': 1}
    """
    if few := int(trainer.get("fast_dev_run") or 0):
        return {**trainer, "max_epochs": 1, "max_steps": few, "limit_train_batches": few}
    if few := trainer.get("overfit_batches") or 0:
        return {**trainer, "limit_train_batches": few}
    return dict(trainer)


def epochs_of(trainer: Mapping[str, Any]) -> int | None:
    """Most epochs of a run; None: no limit."""
    trainer = as_limited(trainer)
    epochs = trainer.get("max_epochs")
    if epochs is None:
        return 1000 if trainer.get("max_steps", -1) == -1 else None  # Lightning's default
    return None if epochs == -1 else epochs


def describe_steps(per_epoch: int | None, total: int | None, epochs: int | None, warmup: str | None) -> str:
    """The length of a run in words.

    Args:
        per_epoch: optimizer steps of an epoch; None: unknown.
        total: of the run; None: unknown, or without an end.
        epochs: of the run, at most; None: no limit.
        warmup: of the schedule; None: there is no schedule, or it has not been built.

    Example:
        >>> describe_steps(34, 8840, 260, "67 steps of warmup")
        '34 steps per epoch, 8840 in all (at most 260 epochs), 67 steps of warmup'
    """
    each = "an unknown number of" if per_epoch is None else str(per_epoch)
    said = "no known number" if total is None else str(total)
    most = f" (at most {epochs} epochs)" if epochs is not None and epochs >= 0 else ""
    return f"{each} steps per epoch, {said} in all{most}" + (f", {warmup}" if warmup else "")


def describe_warmup(scheduler: Any, interval: str) -> str:
    """The warmup of a schedule that was built, in words; of the first where rules have schedules of their own.

    Args:
        scheduler: ours, or one that ours are part of.
        interval: what it counts, ``"step"`` or ``"epoch"``.
    """
    lengths = (policy.arguments.get("warmup_steps") for policy in policies(scheduler))
    length = next((length for length in lengths if length), 0)
    return f"{length} {interval}{'' if length == 1 else 's'} of warmup" if length else "no warmup"


def warmup_of(
    optim: Mapping[str, Any], module: nn.Module, total: int | None, epochs: int | None, per_epoch: int | None
) -> str | None:
    """The warmup of a run, in words; None where its length is not known yet.

    Args:
        optim: the optim block.
        module: to train, on any device.
        total: optimizer steps of the run.
        epochs: of the run, at most; None besides `total`: it has no end.
        per_epoch: optimizer steps of an epoch.

    Raises:
        ConfigError: the run has no end, and the schedule needs one.
    """
    is_endless = total is None and epochs is None
    if not total and not is_endless:
        return None
    block = {key: value for key, value in optim.items() if key not in _OF_TRAINING}
    length = RunLength(total, "the plan", epochs, per_epoch) if total else None
    entry = build_optimizers(block, module, max_steps=length).get("lr_scheduler")
    return "no schedule" if entry is None else describe_warmup(entry["scheduler"], entry["interval"])
