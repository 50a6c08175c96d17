"""Log lines come from rank 0 only, or say from which rank they come."""

import logging

import pytest
import torch

from lightning_novograd.log import every_rank_logger, rank_zero_logger
from lightning_novograd.optim.kernels.cpu import library
from lightning_novograd.optim.novograd import probe


@pytest.mark.parametrize(("initialized", "rank", "speaks"), [(False, 1, True), (True, 0, True), (True, 1, False)])
def test_only_the_first_rank_speaks(initialized, rank, speaks, monkeypatch, caplog):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: initialized)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    with caplog.at_level(logging.INFO):
        rank_zero_logger("lightning_novograd.tests").info("said")
    assert ("said" in caplog.text) is speaks


@pytest.mark.parametrize(("initialized", "rank", "said"), [(False, 0, "2 of 3"), (True, 1, "[rank 1] 2 of 3")])
def test_every_rank_speaks_for_itself(initialized, rank, said, monkeypatch, caplog):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: initialized)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    every_rank_logger("lightning_novograd.tests.ranks").warning("%d of 3", 2)
    assert [record.getMessage() for record in caplog.records] == [said]


@pytest.mark.parametrize("logger", [library.log, probe.log], ids=["library", "probe"])
def test_a_rank_that_steps_in_another_way_says_so(logger, monkeypatch, caplog):
    """Its replica drifts from the others' by roundings."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 3)
    logger.warning("cannot be used")
    assert [record.getMessage() for record in caplog.records] == ["[rank 3] cannot be used"]
