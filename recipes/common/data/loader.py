"""Data loaders that keep the batches they were given, and a position that survives a checkpoint."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_novograd.errors import LightningNovoGradError
from lightning_novograd.recipes.common.data.sampler import EvalBatchSampler, GlobalBatchSampler
from lightning_novograd.recipes.common.data.workers import workers

MOST_WORKERS = 8
SETTLING = 1.0  # s at most; gloo's threads need microseconds once they get a core
TASKS = Path("/proc/self/task")

# what torch's DataLoader says of a worker process that has ended
_LOST = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:(is killed by signal: .*?)\.?|exited unexpectedly.*)\s*$"
)


class WorkerError(LightningNovoGradError, RuntimeError):
    """A worker process of a loader that is gone."""


def lost_worker(error: BaseException) -> WorkerError | None:
    """What an error of torch's means that says only which process is gone; None: it is another error."""
    found = _LOST.match(str(error)) if isinstance(error, RuntimeError) else None
    if found is None:
        return None
    how = (found[2] or "has ended unexpectedly").replace("is killed by signal:", "was ended by the signal")
    why = "by hand, or by the system for want of memory: then fewer data.num_workers help, or more memory"
    return WorkerError(f"a worker of a data loader (process {found[1]}) {how}; {why}")


def fitting_workers(devices: int = 1) -> int:
    """Worker processes of a loader that fit the machine: this process's share of the cores it may use, from 1 to 8.

    More than there are cores slow each other down, of which torch warns.

    Args:
        devices: processes that train on this machine, each with workers of its own.
    """
    return max(1, min(MOST_WORKERS, workers() // devices))


class _Keys(list[tuple[int, int]]):
    """What a batch is made of, (epoch, index) each, and the weight of its loss."""

    weight = 1.0


class _WithEpoch(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index): a worker process has no other way to know the epoch."""

    def __init__(self, sampler: GlobalBatchSampler | EvalBatchSampler) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.sampler.epoch
        for batch in self.sampler:
            keys = _Keys((epoch, index) for index in batch)
            keys.weight = getattr(batch, "weight", 1.0)
            yield keys

    def __len__(self) -> int:
        return len(self.sampler)


class _Batches(Dataset[Any]):
    """Whole batches of a dataset, or the error that kept one from being loaded.

    torch would send a worker's error with its traceback as the message; as a result it arrives as it was.
    """

    def __init__(self, dataset: Dataset, collate: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.collate = dataset, collate

    def __getitems__(self, keys: _Keys) -> Any:
        try:
            batch = self.collate([self.dataset[key] for key in keys])
        except LightningNovoGradError as error:
            return error
        return batch if keys.weight == 1.0 else batch._replace(weight=keys.weight)


def _as_it_is(batch: Any) -> Any:
    return batch


def stand_apart(worker: int) -> None:
    """Keep a worker process out of the reach of signals to the whole run: the training needs it up to its next step.

    Ctrl-C and others go to a process group; without its workers the training could save nothing. SIGTERM is left to
    torch, which ends a worker by it. A worker whose parent is gone ends by itself.

    Args:
        worker: its number.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    for name in ("SIGINT", "SIGUSR1"):  # and not the handlers of the run, which were inherited
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


class BatchLoader:
    """Iterates over the batches of a sampler that deals to ranks itself.

    It holds a `torch.utils.data.DataLoader` and is none: in that Lightning would put a distributed sampler of its own.

    Args:
        dataset: its items are looked up by ``(epoch, index)``.
        sampler: gives the batches.
        collate: list of items to batch.
        num_workers: processes that load ahead; 0 loads in this one, None is :func:`fitting_workers`. Batches do not
            depend on it.
        pin_memory: put batches into page-locked memory.

    Raises:
        LightningNovoGradError: from `next`, as the dataset raised it, in whichever process that was.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: GlobalBatchSampler | EvalBatchSampler,
        collate: Callable[[list[Any]], Any],
        *,
        num_workers: int | None = 0,
        pin_memory: bool = False,
    ) -> None:
        if num_workers is None:
            num_workers = fitting_workers()
        self._new_loader = partial(
            DataLoader,
            _Batches(dataset, collate),
            batch_sampler=_WithEpoch(sampler),
            collate_fn=_as_it_is,
            num_workers=num_workers,
            worker_init_fn=stand_apart if num_workers else None,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
        )
        self._forks = num_workers > 0
        self._loader = self._new_loader()

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        if self._forks:
            let_gloo_settle()
        for batch in self._loader:
            if isinstance(batch, LightningNovoGradError):
                self.close()
                raise batch
            yield batch

    def close(self) -> None:
        """Let go of the worker processes; iterating again starts new ones.

        Left to the garbage collector, which may come while other workers are being started, they take seconds to end.
        """
        self._loader = self._new_loader()


def let_gloo_settle() -> None:
    """Wait until gloo's threads have dropped the tensors of their last collective, before processes are forked.

    For that they register with the interpreter and take its lock. A fork at that moment copies the registry's lock as
    it is, locked, and the new process waits for it for ever (CPython 3.11; docs/gloo_exit.md). A thread that sleeps
    does not hold it: it waits for work, of which there is none, or for the interpreter's lock, which this thread has
    when it forks.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    if not TASKS.exists():  # a system that does not list them
        time.sleep(SETTLING / 10)
        return
    deadline = time.monotonic() + SETTLING
    while not gloo_sleeps() and time.monotonic() < deadline:
        time.sleep(0.001)


def gloo_sleeps() -> bool:
    """Whether every thread of gloo's sleeps, as the system has it."""
    for task in TASKS.iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended
            name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
            if name.startswith("pt_gloo") and rest.split()[0] != "S":
                return False
    return True


class ResumableLoader(BatchLoader):
    """Iterates over training batches and knows how many of them have been delivered.

    Lightning saves `state_dict` in its checkpoints and restores it in ``trainer.fit(ckpt_path=...)``, so a run that
    was cut off goes on with the very next batch. Batches that worker processes have prepared but not delivered do
    not count. The position is the same on every rank; any rank's will do.

    An epoch that was iterated to its end is followed by the next one; `sampler.set_epoch`, which Lightning calls,
    says so explicitly. The workers start at the first `next`, not at `iter`, because Lightning calls `iter` before
    it says which epoch it is.

    Args:
        dataset: its items are looked up by ``(epoch, index)``.
        sampler: gives the batches and keeps the position.
        collate: list of items to batch.
        **kwargs: as for `BatchLoader`.
    """

    def __init__(
        self, dataset: Dataset, sampler: GlobalBatchSampler, collate: Callable[[list[Any]], Any], **kwargs: Any
    ) -> None:
        super().__init__(dataset, sampler, collate, **kwargs)
        self.sampler = sampler

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            self.sampler.delivered += 1
            yield batch
        self.sampler.set_epoch(self.sampler.epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """The sampler's position."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the sampler's position."""
        self.sampler.load_state_dict(state)
