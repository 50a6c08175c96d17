"""A thread of every rank that watches the others, and ends the job when one has died or hangs."""

import contextlib
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from subprocess import Popen

import lightning.pytorch as pl
import torch.distributed as dist

from lightning_novograd.recipes.common.console import fail
from lightning_novograd.recipes.common.faults.board import Board
from lightning_novograd.recipes.common.faults.heartbeat import Heartbeat, Pulse
from lightning_novograd.recipes.common.faults.launch import LAUNCH
from lightning_novograd.recipes.common.faults.processes import (
    Process,
    is_orphan,
    launcher,
    state_of,
    this_process,
    wake_as_orphan,
)
from lightning_novograd.recipes.common.faults.verdict import Lookout, RankError, Verdict
from lightning_novograd.recipes.common.folder import RANKS, process_rank
from lightning_novograd.recipes.common.way_on import note_way_on

log = logging.getLogger(__name__)

# s between two signs of life: a twentieth of the timeout, within these limits. Related processes are looked at as often
# as the first says, as Lightning's own thread ends the first rank without a word when it finds that another has died
PAUSE = (0.2, 5.0)
FIRST = 50  # signs of life that a rank gives as often as that, whatever the timeout
# how an error begins or is called that says only that another rank is gone
_OF_CONNECTION = re.compile(r"gloo|NCCL|Connection (closed|reset)|Broken pipe|Socket|TCPStore")


class Watchdog:
    """Says what this rank does, and looks after others: the first rank after all, every rank after those of its node.

    The first rank judges who hangs; who has died, or is stopped, every rank may say that sees it. Who speaks is decided
    by the run folder, as for any error (:func:`fail`).

    Args:
        heartbeat: of this rank's loop.
        run_dir: the run folder.
        timeout: s without progress, or a sign of life, that are too many; None: only deaths are watched for.
        per_node: ranks of a node.
        children: gives the ranks that this one has started, none before it does.
        end: ends the job, with what is wrong and the process that has to be killed for it, if any.
        clock: s.
    """

    def __init__(
        self,
        heartbeat: Heartbeat,
        run_dir: Path,
        timeout: float | None,
        *,
        per_node: int = 1,
        children: Callable[[], Sequence[Popen]] = tuple,
        end: Callable[[RankError, Process | None], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.heartbeat, self.run_dir, self.timeout = heartbeat, run_dir, timeout
        self.children, self.per_node, self.end, self.clock = children, per_node, end, clock
        self.pause = PAUSE[1] if timeout is None else min(max(timeout / 20, PAUSE[0]), PAUSE[1])
        self.lookout = Lookout(float("inf") if timeout is None else timeout, self.pause)
        self.board: Board | None = None
        self._me, self._tick, self._looked = this_process(), 0, float("-inf")
        self._ranks = range(0)
        self._suspects = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin: with the processes that are related, and with all ranks once they know each other."""
        wake_as_orphan()
        self._thread.start()

    def stop(self) -> None:
        """Leave the others: this rank ends, and not by an error."""
        self._ended.set()
        if self._thread is not threading.current_thread():
            self._thread.join()
        if self.board is not None:
            self.board.leave(dist.get_rank() if dist.is_initialized() else process_rank())

    def suspect(self, error: BaseException) -> None:
        """Give the thread some seconds to find whom this rank has lost, where an error says only that it has.

        Args:
            error: that this rank's loop has ended with.
        """
        if isinstance(error, RuntimeError) and _OF_CONNECTION.search(str(error)):
            self._suspects = True
            self._thread.join(4 * self.pause + 2)

    def _watch(self) -> None:
        while not self._ended.wait(PAUSE[0]):
            try:
                self.look()
            except Exception:  # a watchdog that fails ends no job
                log.debug("the watchdog has failed", exc_info=True)

    def look(self) -> None:
        """Look at the processes that are related, and at the other ranks when it is time."""
        self._look_at_relatives()
        if (dead := self._dead()) is not None:
            self._blame(dead)
        now = self.clock()
        is_new = self._tick < FIRST  # ranks that have just begun are to know each other soon
        if now - self._looked < self.pause and not self._suspects and not is_new:
            return
        self._looked = now
        if LAUNCH.has_failed(self.run_dir):  # a rank has said what is wrong
            self.end(RankError("another rank has failed"), None)
        if self.board is None and LAUNCH.id is not None:
            self.board, self._ranks = Board(LAUNCH.path(self.run_dir, RANKS)), self._watched()
        if self.board is not None:
            self._look_at_ranks(self.board, now)

    def _look_at_relatives(self) -> None:
        if is_orphan():
            name = "torchrun" if "TORCHELASTIC_RUN_ID" in os.environ else "rank 0"
            problem = f"{name} (process {launcher()} on {self._me.host}) has died, so rank {process_rank()} ends"
            self.end(RankError(problem), None)
        for number, child in enumerate(self.children(), start=1):
            code = child.poll()
            if code and code < 128:  # those from 128 on say that it was told to end
                name = f"rank {process_rank() + number} (process {child.pid} on {self._me.host})"
                self.end(RankError(f"{name} has died: {_ending(code)}"), None)

    def _watched(self) -> range:
        rank, size = dist.get_rank(), dist.get_world_size()
        if rank == 0:
            return range(size)
        first = rank - rank % self.per_node
        return range(first, min(first + self.per_node, size))

    def _look_at_ranks(self, board: Board, now: float) -> None:
        rank, heart, watched = dist.get_rank(), self.heartbeat, self._ranks
        self._tick += 1
        board.write(Pulse(rank, self._me, self._tick, heart.count, heart.in_loop, heart.doing))
        self.lookout.see(board.read({0, *watched}), now)
        limit = min(3 * self.pause, self.lookout.timeout) if self._suspects else None
        verdict = self._dead() or self.lookout.silent(now, state_of, limit)
        if verdict is None and rank == 0:
            verdict = self.lookout.stuck(now)
        if verdict is not None:
            self._blame(verdict)

    def _dead(self) -> Verdict | None:
        """Who is gone, and has not left: a rank takes back its signs of life before it ends."""
        verdict = self.lookout.dead(state_of)
        return verdict if verdict is not None and self.board and self.board.read([verdict.culprit.rank]) else None

    def _blame(self, verdict: Verdict) -> None:
        self.end(RankError(f"{verdict.culprit} {verdict.problem}"), verdict.culprit.process)


@contextlib.contextmanager
def watched(trainer: pl.Trainer, heartbeat: Heartbeat, timeout: float | None, run_dir: Path) -> Iterator[None]:
    """Watch the ranks of a run while the block runs; an error in the block ends them all, and says whose it is.

    Args:
        trainer: with its strategy; nothing is done for one rank.
        heartbeat: a callback of the trainer.
        timeout: s, see :class:`Watchdog`.
        run_dir: the run folder.
    """
    if trainer.world_size == 1:
        yield
        return

    def children() -> Sequence[Popen]:
        return getattr(trainer.strategy.launcher, "procs", ())

    def end(error: Exception, culprit: Process | None = None) -> None:
        if isinstance(error, RankError):
            note_way_on(error, run_dir)
        # Lightning takes WORLD_SIZE out of the environment when it ends
        fail(error, run_dir, many=True, peers=children(), culprit=culprit)

    LAUNCH.agree(trainer.strategy)
    watchdog = Watchdog(heartbeat, run_dir, timeout, per_node=trainer.num_devices, children=children, end=end)
    watchdog.start()
    try:
        yield
    except Exception as error:
        watchdog.suspect(error)
        error.add_note(f"(rank {trainer.global_rank}, {this_process()})")
        end(error)
    finally:
        watchdog.stop()


def _ending(code: int) -> str:
    """How a child has ended, in words."""
    if code > 0:
        return f"it has ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    by_whom = " (by hand, or by the system for want of memory)" if code == -signal.SIGKILL else ""
    return f"it was ended by {name}{by_whom}"
