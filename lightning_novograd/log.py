"""Loggers for many processes that train together: what is alike in all is said once, the rest with the rank."""

import logging

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
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else None


# One each: a logger keeps no filter twice
_RANK_ZERO, _NAMED_RANK = _RankZero(), _NamedRank()


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
