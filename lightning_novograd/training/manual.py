"""Manual optimization: whether a schedule is stepped as often as its length supposes."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lightning_novograd.config.schema import OptimConfig, SchedConfig
from lightning_novograd.errors import ConfigError
from lightning_novograd.lr_scheduler.parts import position
from lightning_novograd.training.watchers import Watcher

# Steps more or less than expected: so many are another pace, fewer only as a large share, more but as a small share not
_FEW, _LARGE_SHARE, _SMALL_SHARE = 2, 0.2, 0.01


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


class PaceWatch(Watcher):
    """Warns once of each schedule that is not stepped as often as its length supposes.

    At the end of each epoch it compares all steps since the fit began: an epoch of a few batches says little.

    Args:
        schedules: with the blocks that they are of; those that count epochs are left alone.

    """

    def __init__(self, schedules: Iterable[tuple[SchedConfig, Any]]) -> None:
        self._watched = [_Watched(sched, scheduler) for sched, scheduler in schedules if sched.interval == "step"]
        self._epochs = self._batches_before = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Note where the fit begins; a checkpoint has been loaded by now."""
        self._epochs, self._batches_before = 0, _batches(trainer)
        for watched in self._watched:
            watched.begin = position(watched.scheduler)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Compare."""
        present = [config.scheduler for config in trainer.lr_scheduler_configs]
        self._epochs += 1
        batches = _batches(trainer) - self._batches_before
        for watched in list(self._watched):
            here = any(scheduler is watched.scheduler for scheduler in present)
            if here and (problem := watched.problem(self._epochs, batches)):
                self._watched.remove(watched)
                warnings.warn(problem, UserWarning, stacklevel=2)


@dataclass
class _Watched:
    """A schedule and the step at which the fit began."""

    sched: SchedConfig
    scheduler: Any
    begin: int = 0

    def problem(self, epochs: int, batches: int) -> str | None:
        sched = self.sched
        made, pace = position(self.scheduler) - self.begin, (sched.steps_per_batch or 1.0) / sched.frequency
        if not _differs(made, batches * pace, pace):
            return None
        length = f"an epoch of {batches} batches" if epochs == 1 else f"{epochs} epochs of {batches} batches in all"
        if made == 0:
            problem = f"was never stepped in {length}, so the LR stays what it is"
            cure = "call self.lr_schedulers().step() after optimizer.step()"
        elif sched.max_steps is not None:
            return None  # whoever says the length counts
        else:
            problem = f"was stepped {made} times in {length}, and its length supposes {batches * pace:g}"
            steps_per_batch = made * sched.frequency / batches
            cure = f"say {sched.path}.steps_per_batch: {steps_per_batch:.4g}, or its max_steps"
        return f"{sched.path}: {sched.name} {problem}; {cure}"


def _differs(made: int, expected: float, pace: float) -> bool:
    """Whether that is another pace, and not where in its rhythm a module is, or a step that it has left out."""
    if made == 0:
        return expected >= 2  # or it may be one that steps every other batch
    # who steps every so many batches is a step early or late; so is who steps several times every few batches
    rhythm = 1.0 if pace <= 1 or pace == round(pace) else 2 * pace
    difference = abs(made - expected)
    return difference >= max(rhythm, min(_FEW, _LARGE_SHARE * expected), _SMALL_SHARE * expected)


def _batches(trainer: Any) -> int:
    """How many the trainer has begun, in all fits."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready
