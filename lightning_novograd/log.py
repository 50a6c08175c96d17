"""Loggers for many processes that train together: what is alike in all is said once, the rest with the rank.

They are heard in a script that sets up no logging, as Lightning's are.
"""

import logging
import os
import sys
from importlib.util import find_spec

import torch


class _RankZero(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return _rank() in (None, 0)


class _NamedRank(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        rank = _rank()
        if rank is not None:
            record.msg = f"[rank {rank}] {record.msg}"
        return True


def _rank() -> int | None:
    """Of this process; None where it trains alone."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank()
    return launched_rank()


def launched_rank() -> int | None:
    """Which of the processes of a training this is by its launcher, before there is a process group.

    Returns:
        0 for the first one alone; its rank, or where Lightning starts the processes the local rank or else the node's,
        as nothing says how many a node has. None where no launcher says anything.

    """
    if (rank := _number("RANK")) is not None:  # torchrun, torchelastic, Kubeflow
        return rank
    # Lightning's own launcher begins with one process on each node, which has no LOCAL_RANK
    local, node = _number("LOCAL_RANK"), _number("NODE_RANK") or _number("GROUP_RANK")
    if local is not None or node:
        return local or node or 0
    # these may be set without the processes being started so, and come last, as for Lightning; SLURM's, LSF's jsrun
    rank = _first_number("SLURM_PROCID", "JSM_NAMESPACE_RANK")
    if rank is None and find_spec("mpi4py") is not None:  # without it Lightning takes mpirun's processes for lone ones
        rank = _first_number("OMPI_COMM_WORLD_RANK", "PMI_RANK")
    return rank


def _first_number(*names: str) -> int | None:
    return next((number for name in names if (number := _number(name)) is not None), None)


def _number(name: str) -> int | None:
    said = os.environ.get(name, "")
    return int(said) if said.isdecimal() else None


# One each: a logger keeps no filter twice
_RANK_ZERO, _NAMED_RANK = _RankZero(), _NamedRank()


class _Console(logging.StreamHandler):
    """Writes to stderr what no handler of the application's will write, whenever that sets up its logging."""

    def emit(self, record: logging.LogRecord) -> None:
        if not self._is_handled(logging.getLogger(record.name)):
            self.stream = sys.stderr  # which may not be what it was
            super().emit(record)

    def _is_handled(self, logger: logging.Logger | None) -> bool:
        while logger is not None:
            if any(handler is not self and not isinstance(handler, logging.NullHandler) for handler in logger.handlers):
                return True
            logger = logger.parent if logger.propagate else None
        return False


def rank_zero_logger(name: str) -> logging.Logger:
    """The logger `name`, silent on all ranks but the first: for what is alike on all of them."""
    return _with_filter(name, _RANK_ZERO)


def every_rank_logger(name: str) -> logging.Logger:
    """The logger `name`, which says the rank: for what may differ between machines, or between their GPUs."""
    return _with_filter(name, _NAMED_RANK)


def _with_filter(name: str, rule: logging.Filter) -> logging.Logger:
    logger = logging.getLogger(name)
    logger.addFilter(rule)
    return logger


def _be_heard(package: str) -> None:
    """Give the package's logger the level INFO and the console, as Lightning gives its own."""
    logger = logging.getLogger(package)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _Console) for handler in logger.handlers):
        logger.addHandler(_Console())


_be_heard("lightning_novograd")
