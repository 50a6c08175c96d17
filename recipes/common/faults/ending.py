"""What becomes of the ranks of a run when its training ends, whatever ends it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl

from lightning_novograd.errors import DataError, LightningNovoGradError
from lightning_novograd.recipes.common.data.loader import WorkerError, lost_worker
from lightning_novograd.recipes.common.faults.heartbeat import Heartbeat
from lightning_novograd.recipes.common.faults.watchdog import watched
from lightning_novograd.recipes.common.restart.signals import INBOX, Stopped, end_peers
from lightning_novograd.recipes.common.way_on import note_way_on


@contextlib.contextmanager
def ended_together(trainer: pl.Trainer, heartbeat: Heartbeat, timeout: float | None, run_dir: Path) -> Iterator[None]:
    """Train and measure in the block: its ranks are watched, and what it raises is what has ended it.

    Args:
        trainer: with its strategy.
        heartbeat: a callback of the trainer.
        timeout: s, see :class:`Watchdog`.
        run_dir: the run folder.

    Raises:
        Stopped: a signal has asked for it, also where another rank or a loader's process was the first to notice.
        WorkerError: a loader's process is gone.
    """
    try:
        with watched(trainer, heartbeat, timeout, run_dir):
            try:
                yield
            except Exception as error:
                if (lost := lost_worker(error)) is not None and INBOX.number is None:
                    error = lost.with_traceback(error.__traceback__)
                if isinstance(error, DataError | WorkerError):
                    note_way_on(error, run_dir)
                if INBOX.number is None or isinstance(error, LightningNovoGradError):
                    raise error
                # a loader's process or another rank has got the signal too, and did not wait for the next step
                raise Stopped(INBOX.number) from error
    except Stopped as end:
        end_peers(end, INBOX.peers)
        raise
