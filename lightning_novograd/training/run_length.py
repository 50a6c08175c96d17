"""How many optimizer steps a Trainer's run will make."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lightning_novograd.config.length import RunLength
from lightning_novograd.config.schema import OptimConfig, SchedulerSpec
from lightning_novograd.large_batch import BatchRamp
from lightning_novograd.log import rank_zero_logger

log = rank_zero_logger(__name__)


def run_length(trainer: Any, config: OptimConfig, configs: Sequence[OptimConfig] = ()) -> RunLength:
    """Length of `trainer.fit`: the Trainer's max_steps, or epochs x batches / accumulation, whichever ends first.

    Under manual optimization a batch has one step of each optimizer, or as many as `steps_per_batch` of its schedule
    says, and the Trainer's max_steps are those of all optimizers together.

    A Trainer that fits again goes on counting epochs and steps, but optimizer and schedule begin anew: the length is
    that of the epochs and steps which its limits leave, on the data of this fit. An epoch that was stopped half-way is
    over, one that ended in an exception is repeated. With a checkpoint the schedule goes on in its place, and the
    length is counted from step 0.

    Where batches must be counted, this loads the training data as `trainer.estimated_stepping_batches` does. Lightning
    then takes the loaders for loaded and no longer gives stateful ones their saved state on resume (Lightning issue
    20550), so these are loaded once more when the fit begins.

    Args:
        trainer: of either Lightning package, in `configure_optimizers`.
        config: whose schedule asks.
        configs: those of all optimizers, where there are several.

    """
    done = _Done() if trainer.ckpt_path is not None else _Done.of(trainer)
    length = _length(trainer, config, _pace(trainer, config, configs), done)
    if done.steps and not length.trial:
        log.info("This Trainer has made %d steps: optimizer and schedule begin anew, for what is left", done.steps)
    return length


@dataclass(frozen=True)
class _Done:
    """What a Trainer has behind it when a fit begins: whole epochs, and steps of all optimizers."""

    epochs: int = 0
    steps: int = 0

    @classmethod
    def of(cls, trainer: Any) -> "_Done":
        # `processed` is what Lightning compares with max_epochs
        return cls(trainer.fit_loop.epoch_progress.current.processed, trainer.global_step)


@dataclass(frozen=True)
class _Pace:
    """How often an optimizer steps: for each batch, and as a share of all optimizers' steps."""

    per_batch: float = 1.0
    share: float = 1.0


def _pace(trainer: Any, config: OptimConfig, configs: Sequence[OptimConfig]) -> _Pace | None:
    """Under manual optimization; None where Lightning steps."""
    if trainer.lightning_module.automatic_optimization:
        return None
    paces = [(one.stepped.steps_per_batch if one.stepped is not None else None) or 1.0 for one in configs or [config]]
    own = (config.stepped.steps_per_batch if config.stepped is not None else None) or 1.0
    return _Pace(own, own / sum(paces))


def _length(trainer: Any, config: OptimConfig, pace: _Pace | None, done: _Done) -> RunLength:
    """The length of a fit that begins after `done`."""
    if trainer.fast_dev_run:
        return _trial_length(config, f"fast_dev_run={trainer.fast_dev_run}")
    max_steps = None if trainer.max_steps == -1 else trainer.max_steps
    max_epochs = None if trainer.max_epochs in (None, -1) else trainer.max_epochs
    if 0 in (max_steps, max_epochs):
        return _trial_length(config, "max_steps=0" if max_steps == 0 else "max_epochs=0")
    limit = f"Trainer(max_steps={max_steps})"
    if max_steps is not None and done.steps:
        max_steps -= done.steps
        limit += f" - {done.steps} made before"
    if max_epochs is not None:
        max_epochs -= done.epochs
    if any(left is not None and left <= 0 for left in (max_steps, max_epochs)):
        return _trial_length(config, "nothing is left")
    if max_steps is not None and pace is not None and pace.share != 1:
        max_steps = max(1, int(max_steps * pace.share))
        limit += f", which counts all optimizers' steps: {max_steps} of this one"
    sched = config.stepped
    counts_epochs = any(
        one.interval == "epoch" or one.max_epochs is not None or one.warmup_epochs is not None for one in config.scheds
    )
    endless = _endless(trainer)
    if max_epochs is None and not counts_epochs:
        return RunLength(None, endless) if max_steps is None else RunLength(max_steps, limit)

    batches = _batches_per_epoch(trainer)
    if isinstance(batches, float):  # infinite: a finite number is an int
        problem = "the training data has no length (an iterable dataset)"
        if max_steps is None:
            return RunLength(None, f"{problem} and the Trainer no max_steps", max_epochs)
        return RunLength(max_steps, limit if max_epochs else f"{limit}, and {problem}", max_epochs)
    if batches == 0:
        return _trial_length(config, "no batches")
    per_epoch: int | Callable[[int], int]
    if pace is not None:
        per_epoch = partial(_manual_steps, batches * pace.per_batch)
        each = f"{batches} batches" + (f" x steps_per_batch={pace.per_batch:g}" if pace.per_batch != 1 else "")
    else:
        per_epoch = _accumulated_steps(trainer, batches, done)
        each = f"{batches} batches{_accumulation(trainer)}"
    if max_epochs is None and max_steps is None:
        return RunLength(None, endless, None, per_epoch)
    epochs, total = _epochs_and_steps(per_epoch, max_epochs, max_steps)
    if max_steps is not None and max_steps <= total:
        source = limit if sched is None or sched.interval == "step" else f"{limit}, epochs of {each}"
        return RunLength(max_steps, source, epochs, per_epoch)
    left = " left" if done.epochs else ""
    return RunLength(total, f"{epochs} epochs{left} x {each}", epochs, per_epoch)


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


def _manual_steps(steps: float, epoch: int) -> int:
    """Optimizer steps of an epoch that has `steps` on the average, where they are made every so many batches."""
    return math.floor((epoch + 1) * steps) - math.floor(epoch * steps)


def _endless(trainer: Any) -> str:
    """Why a run has no number of steps."""
    timer = next((callback for callback in trainer.callbacks if hasattr(callback, "time_remaining")), None)
    if timer is not None:
        return "the Trainer's max_time ends the run, after nobody knows how many steps"
    return "Trainer(max_epochs=-1) without max_steps runs for ever"


def _accumulation(trainer: Any) -> str:
    """What batches are divided by, in words."""
    if (ramp := _batch_ramp(trainer)) is not None:
        several = len(ramp.plans) > 1
        batches = ramp.plans[0].accumulate_grad_batches
        return " / the accumulation of the batch ramp" if several else f" / {batches} accumulated (large_batch)"
    if _accumulation_scheduler(trainer) is not None:
        return " / the accumulation of GradientAccumulationScheduler"
    accumulation = trainer.accumulate_grad_batches
    return f" / accumulate_grad_batches={accumulation}" if accumulation > 1 else ""


def _accumulated_steps(trainer: Any, batches: int, done: _Done) -> int | Callable[[int], int]:
    """Optimizer steps in an epoch where Lightning accumulates: a function of its index in this fit if they vary.

    Lightning steps at the last batch of an epoch too, however few have accumulated.
    """
    if (ramp := _batch_ramp(trainer)) is not None:
        return _ramp_steps(ramp, batches, done.steps)
    if (scheduler := _accumulation_scheduler(trainer)) is None:
        return math.ceil(batches / trainer.accumulate_grad_batches)
    # it changes at epochs of the Trainer, which goes on counting them when it fits again
    return lambda epoch: math.ceil(batches / scheduler.get_accumulate_grad_batches(done.epochs + epoch))


def _batch_ramp(trainer: Any) -> BatchRamp | None:
    """That of our BatchRampScheduler."""
    ramps = (getattr(callback, "ramp", None) for callback in trainer.callbacks)
    return next((ramp for ramp in ramps if isinstance(ramp, BatchRamp)), None)


def _ramp_steps(ramp: BatchRamp, batches: int, first_step: int) -> Callable[[int], int]:
    """Optimizer steps of each epoch, by its index: what they are depends on the steps of all epochs before."""
    ends = [first_step]

    def steps_of_epoch(epoch: int) -> int:
        while len(ends) < epoch + 2:
            ends.append(ends[-1] + ramp.steps_of(batches, ends[-1]))
        return ends[epoch + 1] - ends[epoch]

    return steps_of_epoch


def _accumulation_scheduler(trainer: Any) -> Any:
    """Lightning's GradientAccumulationScheduler, whichever package it is of."""
    return next((callback for callback in trainer.callbacks if hasattr(callback, "get_accumulate_grad_batches")), None)


def _trial_length(config: OptimConfig, why: str) -> RunLength:
    """For a run that tests the code, not the schedule: long enough for every schedule that fits some run.

    The phases of a schedule are shares of the run, for which a million steps will do, or numbers of steps in the block
    (`warmup_steps: 2000000`): the sum of all numbers there is more than any of its phases needs.
    """
    numbers_in_block = (number for sched in config.scheds for number in _numbers(vars(sched)))
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
