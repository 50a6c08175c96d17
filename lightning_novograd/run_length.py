"""How many optimizer steps a Trainer's run will make."""

import math
from typing import Any

from lightning_novograd.factory import RunLength
from lightning_novograd.optim_block import OptimConfig


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
        return _trial_length(config, f"fast_dev_run={trainer.fast_dev_run}", int(trainer.fast_dev_run))
    max_steps = None if trainer.max_steps == -1 else trainer.max_steps
    max_epochs = None if trainer.max_epochs in (None, -1) else trainer.max_epochs
    epoch_length_wanted = config.sched is not None and config.sched.max_epochs is not None
    if max_epochs is None and not epoch_length_wanted:
        if max_steps is None:
            return RunLength(None, "Trainer(max_epochs=-1) without max_steps runs for ever")
        return RunLength(max_steps, f"Trainer(max_steps={max_steps})")

    batches = _batches_per_epoch(trainer)
    if isinstance(batches, float):  # infinite: a finite number is an int
        if max_steps is None:
            problem = "the training data has no length (an iterable dataset) and the Trainer no max_steps"
            return RunLength(None, problem, max_epochs)
        return RunLength(max_steps, f"Trainer(max_steps={max_steps})", max_epochs)
    if 0 in (batches, max_epochs, max_steps):
        return _trial_length(config, f"nothing to train: {batches} batches, max_epochs={max_epochs}", 1)
    per_epoch = _steps_of_epoch(trainer, batches, 0)
    steps = f"Trainer(max_steps={max_steps})"
    if max_epochs is None:
        return RunLength(max_steps, steps, None, per_epoch)
    total, accumulation = _steps_of_run(trainer, batches, max_epochs)
    if max_steps is not None and max_steps <= total:
        return RunLength(max_steps, steps, max_epochs, per_epoch)
    return RunLength(total, f"{max_epochs} epochs x {batches} batches{accumulation}", max_epochs, per_epoch)


def _batches_per_epoch(trainer: Any) -> int | float:
    loop = trainer.fit_loop
    if trainer.train_dataloader is None:
        loop.setup_data()
        may_resume = trainer.ckpt_path is not None or trainer.strategy.restore_checkpoint_after_setup
        loaders = loop._combined_loader.flattened if loop._combined_loader is not None else ()
        if may_resume and any(hasattr(loader, "load_state_dict") for loader in loaders):
            loop._combined_loader = None  # so the loop sets its data up again, with the saved state in hand
    return 0 if trainer.limit_train_batches == 0 else trainer.num_training_batches


def _steps_of_run(trainer: Any, batches: int, epochs: int) -> tuple[int, str]:
    """Optimizer steps of all epochs, and what they were divided by, in words."""
    if _accumulation_scheduler(trainer) is not None:
        total = sum(_steps_of_epoch(trainer, batches, epoch) for epoch in range(epochs))
        return total, " / the accumulation of GradientAccumulationScheduler"
    accumulation = trainer.accumulate_grad_batches
    described = f" / accumulate_grad_batches={accumulation}" if accumulation > 1 else ""
    return epochs * _steps_of_epoch(trainer, batches, 0), described


def _steps_of_epoch(trainer: Any, batches: int, epoch: int) -> int:
    """Lightning steps at the last batch of an epoch too, however few have accumulated."""
    scheduler = _accumulation_scheduler(trainer)
    accumulation = scheduler.get_accumulate_grad_batches(epoch) if scheduler else trainer.accumulate_grad_batches
    return math.ceil(batches / accumulation)


def _accumulation_scheduler(trainer: Any) -> Any:
    """Lightning's GradientAccumulationScheduler, whichever package it is of."""
    return next((callback for callback in trainer.callbacks if hasattr(callback, "get_accumulate_grad_batches")), None)


def _trial_length(config: OptimConfig, why: str, steps: int) -> RunLength:
    """For a run that tests the code, not the schedule: long enough for the schedule's own phases."""
    args = config.sched.args if config.sched is not None else {}
    phases = sum(args.get(f"{phase}_steps") or 0 for phase in ("warmup", "hold", "constant"))
    return RunLength(steps + phases, f"{why}, plus the schedule's phases", 1, steps + phases)
