"""How many optimizer steps a Trainer's run will make."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from lightning_novograd.config.length import RunLength
from lightning_novograd.config.schema import OptimConfig, SchedulerSpec


def run_length(trainer: Any, config: OptimConfig) -> RunLength:
    """Length of `trainer.fit`: the Trainer's max_steps, or epochs x batches / accumulation, whichever ends first.

    Where batches must be counted, this loads the training data as `trainer.estimated_stepping_batches` does. Lightning
    then takes the loaders for loaded and no longer gives stateful ones their saved state on resume (Lightning issue
    20550), so these are loaded once more when the fit begins.

    Args:
        trainer: of either Lightning package, in `configure_optimizers`.
        config: whose schedule asks.

    """
    if trainer.fast_dev_run:
        return _trial_length(config, f"fast_dev_run={trainer.fast_dev_run}")
    max_steps = None if trainer.max_steps == -1 else trainer.max_steps
    max_epochs = None if trainer.max_epochs in (None, -1) else trainer.max_epochs
    if 0 in (max_steps, max_epochs):
        return _trial_length(config, "max_steps=0" if max_steps == 0 else "max_epochs=0")
    limit = f"Trainer(max_steps={max_steps})"
    sched = config.sched
    counts_epochs = sched is not None and (sched.interval == "epoch" or sched.max_epochs is not None)
    if max_epochs is None and not counts_epochs:
        if max_steps is None:
            return RunLength(None, "Trainer(max_epochs=-1) without max_steps runs for ever")
        return RunLength(max_steps, limit)

    batches = _batches_per_epoch(trainer)
    if isinstance(batches, float):  # infinite: a finite number is an int
        problem = "the training data has no length (an iterable dataset)"
        if max_steps is None:
            return RunLength(None, f"{problem} and the Trainer no max_steps", max_epochs)
        return RunLength(max_steps, limit if max_epochs else f"{limit}, and {problem}", max_epochs)
    if batches == 0:
        return _trial_length(config, "no batches")
    steps_of_epoch = partial(_steps_of_epoch, trainer, batches)
    per_epoch = steps_of_epoch if _accumulation_scheduler(trainer) else steps_of_epoch(0)
    if max_epochs is None and max_steps is None:
        return RunLength(None, "Trainer(max_epochs=-1) without max_steps runs for ever", None, per_epoch)
    epochs, total = _epochs_and_steps(per_epoch, max_epochs, max_steps)
    each = f"{batches} batches{_accumulation(trainer)}"
    if max_steps is not None and max_steps <= total:
        source = limit if sched is None or sched.interval == "step" else f"{limit}, epochs of {each}"
        return RunLength(max_steps, source, epochs, per_epoch)
    return RunLength(total, f"{epochs} epochs x {each}", epochs, per_epoch)


def _batches_per_epoch(trainer: Any) -> int | float:
    loop = trainer.fit_loop
    if trainer.train_dataloader is None:
        loop.setup_data()
        may_resume = trainer.ckpt_path is not None or trainer.strategy.restore_checkpoint_after_setup
        loaders = loop._combined_loader.flattened if loop._combined_loader is not None else ()
        if may_resume and any(hasattr(loader, "load_state_dict") for loader in loaders):
            loop._combined_loader = None  # so the loop sets its data up again, with the saved state in hand
    return 0 if trainer.limit_train_batches == 0 else trainer.num_training_batches


def _epochs_and_steps(
    per_epoch: int | Callable[[int], int], max_epochs: int | None, max_steps: int | None
) -> tuple[int, int]:
    """Epochs that a run begins before either limit (at least one is given) ends it, and the steps of these epochs."""
    if not callable(per_epoch):
        epochs = min(end for end in (max_epochs, max_steps and -(-max_steps // per_epoch)) if end)
        return epochs, epochs * per_epoch
    epochs = steps = 0
    while epochs != max_epochs and (max_steps is None or steps < max_steps):
        steps += per_epoch(epochs)
        epochs += 1
    return epochs, steps


def _accumulation(trainer: Any) -> str:
    """What batches are divided by, in words."""
    if _accumulation_scheduler(trainer) is not None:
        return " / the accumulation of GradientAccumulationScheduler"
    accumulation = trainer.accumulate_grad_batches
    return f" / accumulate_grad_batches={accumulation}" if accumulation > 1 else ""


def _steps_of_epoch(trainer: Any, batches: int, epoch: int) -> int:
    """Lightning steps at the last batch of an epoch too, however few have accumulated."""
    scheduler = _accumulation_scheduler(trainer)
    accumulation = scheduler.get_accumulate_grad_batches(epoch) if scheduler else trainer.accumulate_grad_batches
    return math.ceil(batches / accumulation)


def _accumulation_scheduler(trainer: Any) -> Any:
    """Lightning's GradientAccumulationScheduler, whichever package it is of."""
    return next((callback for callback in trainer.callbacks if hasattr(callback, "get_accumulate_grad_batches")), None)


def _trial_length(config: OptimConfig, why: str) -> RunLength:
    """For a run that tests the code, not the schedule: long enough for every schedule that fits some run.

    The phases of a schedule are shares of the run, for which a million steps will do, or numbers of steps in the block
    (`warmup_steps: 2000000`): the sum of all numbers there is more than any of its phases needs.
    """
    numbers_in_block = _numbers(vars(config.sched)) if config.sched is not None else ()
    steps = 1_000_000 + sum(math.ceil(value) for value in numbers_in_block if value >= 1)
    return RunLength(steps, f"{why}: a trial, in which every schedule fits", steps, steps, trial=True)


def _numbers(value: Any) -> Iterator[float]:
    """All numbers in a schedule, those in lists and of its members too."""
    if isinstance(value, SchedulerSpec):
        value = vars(value)
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value
