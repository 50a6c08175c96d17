"""Log lines come from rank 0 only."""

import logging

import pytest
import torch

from lightning_novograd.log import rank_zero_logger


@pytest.mark.parametrize(("initialized", "rank", "speaks"), [(False, 1, True), (True, 0, True), (True, 1, False)])
def test_only_the_first_rank_speaks(initialized, rank, speaks, monkeypatch, caplog):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: initialized)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    with caplog.at_level(logging.INFO):
        rank_zero_logger("lightning_novograd.tests").info("said")
    assert ("said" in caplog.text) is speaks
