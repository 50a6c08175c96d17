"""What a run would be, without one: ``train.py --plan``."""

from collections.abc import Iterator
from typing import Any

import torch

from lightning_novograd.large_batch.plan import BatchPlan
from lightning_novograd.recipes.asr.data.config import DataConfig
from lightning_novograd.recipes.asr.data.size import TrainingSize, training_size
from lightning_novograd.recipes.asr.training.freezing import freeze
from lightning_novograd.recipes.asr.training.labels import AUTO, with_labels
from lightning_novograd.recipes.asr.training.module import CTCModule
from lightning_novograd.recipes.asr.training.results import describe_plan
from lightning_novograd.recipes.asr.training.settings import RunSettings, plan_batches
from lightning_novograd.recipes.common.batches.memory import describe_state
from lightning_novograd.recipes.common.batches.optim import planned_optim
from lightning_novograd.recipes.common.batches.steps import count_steps, describe_steps, epochs_of, warmup_of
from lightning_novograd.recipes.common.data.steps import EpochSteps, epoch_steps, epoch_steps_of_seconds

_SOME_LABELS = list(" abcdefghijklmnopqrstuvwxyz'")  # for an alphabet of texts that are not read


def describe_run(cfg: Any) -> str:
    """The plan of a run: batches, learning rate, steps, memory. Nothing is trained, made or written.

    Args:
        cfg: the composed ``conf/asr.yaml``.

    Raises:
        ConfigError: as the run would.
        DataError: the training set is too small for the global batch.
    """
    return "\n".join(_lines(RunSettings.read(cfg, "")))


def _lines(settings: RunSettings) -> Iterator[str]:
    data = DataConfig.from_mapping(settings.data)
    plan = plan_batches(settings, data.loading.batch_size)
    seconds = data.loading.batch_seconds
    yield describe_plan(plan, seconds)
    optim, lr = planned_optim(settings, plan)
    yield str(lr)
    size = training_size(data)
    epoch = _epoch(settings, plan, size, seconds)
    yield _describe_size(size, epoch)
    model, stood_in = settings.model, ""
    if model.get("labels") == AUTO:
        model, stood_in = {**model, "labels": _SOME_LABELS}, f" ({len(_SOME_LABELS)} labels assumed for labels: auto)"
    with torch.device("meta"):
        module = CTCModule(with_labels(model, data), optim)
    if settings.freeze:
        freeze(module, settings.freeze)
    per_epoch, total = count_steps(epoch, plan, settings.trainer)
    epochs = epochs_of(settings.trainer)
    warmup = warmup_of(optim, module, total, epochs, per_epoch)
    yield describe_steps(per_epoch, total, epochs, warmup)
    yield describe_state(module, settings.trainer, plan.world_size) + stood_in


def _epoch(settings: RunSettings, plan: BatchPlan, size: TrainingSize, seconds: float | None) -> EpochSteps | None:
    if size.utterances is None or (seconds is not None and size.seconds is None):
        return None
    ranks, accumulate = plan.world_size, plan.accumulate_grad_batches
    if seconds is not None and size.seconds is not None:
        return epoch_steps_of_seconds(size.seconds, seconds, ranks, accumulate)
    return epoch_steps(size.utterances, plan.per_device_batch_size, ranks, accumulate, settings.large_batch.last)


def _describe_size(size: TrainingSize, epoch: EpochSteps | None) -> str:
    if size.utterances is None:
        return f"utterances of the training set: unknown ({size.note})"
    said = f"{size.utterances} utterances in an epoch" + (f" ({size.note})" if size.note else "")
    if epoch is None:
        return f"{said}, of unknown length"
    if epoch.short:
        return f"{said}, its last step is shorter"
    return f"{said}, {epoch.left_out} left out of it" if epoch.left_out else said
