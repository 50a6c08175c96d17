"""What a run of a task would be, without one: ``train.py --plan``."""

from collections.abc import Iterator
from typing import Any

import torch

from lightning_novograd.recipes.common.batches.memory import describe_state
from lightning_novograd.recipes.common.batches.optim import planned_optim
from lightning_novograd.recipes.common.batches.plan import plan_batches
from lightning_novograd.recipes.common.batches.steps import count_steps, describe_steps, epochs_of, warmup_of
from lightning_novograd.recipes.common.data.steps import epoch_steps
from lightning_novograd.recipes.common.tasks.settings import TaskSettings
from lightning_novograd.recipes.common.tasks.task import Task


def describe_run(task: Task, cfg: Any) -> str:
    """The plan of a run: batches, learning rate, steps, memory. Nothing is trained or written.

    Args:
        task: what would be trained.
        cfg: the composed config.

    Raises:
        ConfigError: as the run would.
        DataError: the training set is too small for the global batch.
    """
    return "\n".join(_lines(task, TaskSettings.read(cfg, "")))


def _lines(task: Task, settings: TaskSettings) -> Iterator[str]:
    data = task.data.read(settings.data, "data")
    plan = plan_batches(settings, data.batch_size)
    yield str(plan)
    optim, lr = planned_optim(settings, plan)
    yield str(lr)
    examples, last = len(data.sets(settings.seed)["train"]), settings.large_batch.last
    ranks, accumulate = plan.world_size, plan.accumulate_grad_batches
    epoch = epoch_steps(examples, plan.per_device_batch_size, ranks, accumulate, last, task.unit)
    rest = ", its last step is shorter" if epoch.short else ""
    rest = f", {epoch.left_out} left out of it" if epoch.left_out else rest
    yield f"{examples} {task.unit} in an epoch{rest}"
    with torch.device("meta"):
        module = task.module(settings.model, optim)
    per_epoch, total = count_steps(epoch, plan, settings.trainer)
    epochs = epochs_of(settings.trainer)
    warmup = warmup_of(optim, module, total, epochs, per_epoch)
    yield describe_steps(per_epoch, total, epochs, warmup)
    yield describe_state(module, settings.trainer, plan.world_size)
