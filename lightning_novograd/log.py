"""Loggers that speak once, however many processes train."""

import logging

import torch


class _RankZero(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        distributed = torch.distributed
        return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


def rank_zero_logger(name: str) -> logging.Logger:
    """The logger `name`, silent on all ranks but the first."""
    logger = logging.getLogger(name)
    logger.addFilter(_RankZero())
    return logger
