"""Signals that end a run: noted when they come, acted on between two optimizer steps, by all ranks together.

Lightning 2.6 saves and broadcasts inside its signal handlers, where the process may be in the middle of a collective of
its own (its issue 21406). Here a handler notes the number, and nothing else.
"""

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

from lightning_novograd.recipes.common.callbacks.nonfinite import NonFiniteGuard, summed
from lightning_novograd.recipes.common.checkpoints.kept import StepCheckpoint
from lightning_novograd.recipes.common.folder import process_rank

log = logging.getLogger(__name__)

# SIGUSR1 is what SLURM sends before the time of a job is over (#SBATCH --signal=SIGUSR1@90); Windows has none
PATIENCE = 5.0  # s that ranks get to end by themselves
_LIGHTNINGS = ("register_signal_handlers", "_slurm_sigusr_handler_fn")  # private, so another version may lack them
TIME_IS_UP = getattr(signal, "SIGUSR1", None)  # Lightning's, for SLURM
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Stopped(SystemExit):
    """The end of a run that a signal has asked for; its code is 128 + the signal's number, as shells have it.

    Args:
        number: of the signal.
        checkpoint: that was saved for it.
        together: whether all ranks end so.
        is_settled: whether SLURM was asked to begin the job again, if it was to be.
    """

    def __init__(
        self, number: int, checkpoint: str | None = None, together: bool = False, is_settled: bool = False
    ) -> None:
        super().__init__(128 + number)
        self.number, self.checkpoint, self.together, self.is_settled = number, checkpoint, together, is_settled


class Inbox:
    """The signal that this process was asked to end by.

    Attributes:
        is_training: whether it waits for the next optimizer step; else the first one ends the run where it is.
        agreed: the signal that all ranks know of.
        peers: processes that this one has started, which end with it.
    """

    def __init__(self, numbers: Sequence[int] = ENDING) -> None:
        self.numbers = [int(number) for number in numbers]
        self.number: int | None = None
        self.agreed: int | None = None
        self.is_training = False
        self.peers: Sequence[subprocess.Popen] = ()

    def clear(self) -> None:
        """Forget what has come."""
        self.number, self.agreed, self.is_training, self.peers = None, None, False, ()

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler.

        Raises:
            Stopped: nothing is lost here, or there is no next step.
        """
        if self.number is not None:
            self._end_at_once(number)
        self.number = int(number)
        if not self.is_training:
            raise Stopped(self.number)

    def votes(self) -> list[float]:
        """What the ranks sum up: for every signal whether this one has got it."""
        return [float(self.number == number) for number in self.numbers]

    def count(self, summed: Sequence[float]) -> None:
        """Take the sums; of several signals the first in the list counts."""
        came = (number for number, ranks in zip(self.numbers, summed, strict=True) if ranks)
        self.agreed = next(came, None)

    def ask(self, trainer: pl.Trainer) -> None:
        """Sum the votes up where no other number travels, on all ranks together."""
        votes = torch.tensor(self.votes(), device=trainer.strategy.root_device)
        self.count(summed(trainer, votes).tolist())

    def _end_at_once(self, number: int) -> None:
        for peer in self.peers:
            peer.kill()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


# signals are the process's
INBOX = Inbox()


@contextlib.contextmanager
def listening(inbox: Inbox) -> Iterator[None]:
    """Have an empty inbox get the signals while the block runs; outside of the main thread Python hands out none."""
    inbox.clear()
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, inbox.note) for number in inbox.numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class StopAtSignal(Checkpoint):
    """Ends a training at a signal, with a checkpoint between two optimizer steps that all ranks save together.

    One rank may have got the signal alone. The ranks hear of it with the number that the guard sums up before each
    optimizer step, and in validations with one of their own per batch; so they end after the same step.

    Where SLURM requeues, Lightning's own handler saves and calls ``scontrol`` for the signal that it has for that.

    It is a `Checkpoint` so that Lightning calls it behind all other callbacks.

    Args:
        inbox: gets the signals.
        folder: of the checkpoints.
    """

    def __init__(self, inbox: Inbox, folder: Path) -> None:
        self.inbox, self.folder = inbox, folder
        self._own: StepCheckpoint | None = None  # where the run saves none inside an epoch

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the place of Lightning's handlers.

        Raises:
            RuntimeError: this version of Lightning registers them otherwise, so that both would act.
        """
        connector = trainer._signal_connector
        for name in _LIGHTNINGS:
            if not hasattr(connector, name):
                raise RuntimeError(
                    f"Lightning {version('lightning')}: its _SignalConnector has no {name}, which this recipe replaces "
                    "or calls; use lightning 2.6"
                )
        connector.register_signal_handlers = _nothing  # type: ignore[method-assign]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by the Trainer's connector
            if isinstance(callback, NonFiniteGuard):
                callback.inbox = self.inbox
        self.inbox.peers = getattr(trainer.strategy.launcher, "procs", ())

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on there is a next step."""
        self.inbox.is_training = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End behind the step before which the ranks have agreed."""
        if self.inbox.agreed is not None and not trainer.fit_loop._should_accumulate():
            self._end(trainer)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """End inside a validation, which the resumed run begins anew."""
        if self.inbox.is_training and trainer.state.fn == "fit":
            self.inbox.ask(trainer)
            if self.inbox.agreed is not None:
                self._end(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The checkpoint of the epoch's end takes the place of one that was saved for a signal."""
        if trainer.is_global_zero and self._steps(trainer) is self._own:
            self._own.remove_others(None)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look once more; from here on nothing is lost."""
        self.inbox.is_training = False
        self.inbox.ask(trainer)
        if self.inbox.agreed is not None:
            raise Stopped(self.inbox.agreed, together=True)

    def _steps(self, trainer: pl.Trainer) -> StepCheckpoint:
        """What saves inside an epoch."""
        callbacks = trainer.checkpoint_callbacks
        if (found := next((c for c in callbacks if isinstance(c, StepCheckpoint)), None)) is not None:
            return found
        self._own = self._own or StepCheckpoint(self.folder, None)
        return self._own

    def _end(self, trainer: pl.Trainer) -> None:
        number = self.inbox.agreed
        assert number is not None
        environment = trainer._accelerator_connector.cluster_environment
        requeues = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
        path = None
        if requeues and number == getattr(environment, "requeue_signal", None):
            trainer._signal_connector._slurm_sigusr_handler_fn(number, None)  # type: ignore[arg-type]
            # the first rank alone calls scontrol, and srun --kill-on-bad-exit=1 ends it once another one has ended
            trainer.strategy.barrier("requeued")
        elif not trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by the Trainer's set-up
            path = self._steps(trainer).save_now(trainer)
        raise Stopped(number, path, together=True, is_settled=True)


def end_peers(end: Stopped, peers: Sequence[subprocess.Popen]) -> None:
    """See to it that the processes end that this one has started.

    Args:
        end: if all ranks end together, they have time to.
        peers: these processes.
    """
    deadline = time.monotonic() + (PATIENCE if end.together else 0.0)
    for peer in peers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            peer.wait(max(deadline - time.monotonic(), 0.0))
        peer.kill()


def exit_code(end: Stopped) -> int:
    """Of this process. The first one's is the job's, to SLURM too: srun ends with the largest of its tasks' codes.

    Lightning's launcher, and ``srun --kill-on-bad-exit=1``, kill the first process when another one ends with an error
    before it; so where all end together, the others end without. SLURM tells all tasks when the time is up.
    """
    in_slurm = SLURMEnvironment.detect()
    killed = not TorchElasticEnvironment.detect() and ("LOCAL_RANK" in os.environ or in_slurm)
    together = end.together or (in_slurm and end.number == TIME_IS_UP)
    return 0 if together and killed and process_rank() else 128 + end.number


def requeue(end: Stopped) -> None:
    """Have SLURM begin a job again whose time was up when nothing was to be saved: it prepared data, or measured.

    Lightning does so, behind a checkpoint, in the middle of a training.

    Args:
        end: what has ended the job; a signal that is not SLURM's for this is left to SLURM.
    """
    if end.number != TIME_IS_UP or end.is_settled or process_rank() or not SLURMEnvironment.detect():
        return
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = os.environ["SLURM_JOB_ID"] if array is None else f"{array}_{task}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        problem = done.stderr.strip() if done.returncode else None
    except OSError as error:
        problem = str(error)
    if problem is None:
        log.info("SLURM job %s is in the queue again", job)
    else:
        log.error("SLURM job %s could not be put into the queue again: %s", job, problem)


def _nothing() -> None:
    """In place of `register_signal_handlers`."""
