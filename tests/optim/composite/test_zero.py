"""Optimizers that share their state among ranks (ZeRO), under LARC and in a Composite."""

from pathlib import Path

import pytest
import torch
from ranks import run_ranks

from lightning_novograd.optim import LARC, Composite


class Sharing(torch.optim.SGD):
    """Its state must be gathered before it is saved."""

    gathered_on = None

    def consolidate_state_dict(self, to=0):
        self.gathered_on = to


def sgd(cls=torch.optim.SGD):
    return cls([torch.nn.Parameter(torch.ones(2))], lr=0.1)


@pytest.mark.parametrize(
    "wrap", [LARC, lambda inner: Composite([sgd(), inner]), lambda inner: LARC(Composite([sgd(), inner]))]
)
def test_the_state_is_gathered_where_one_inside_shares_it(wrap):
    inner = sgd(Sharing)
    wrap(inner).consolidate_state_dict(to=1)
    assert inner.gathered_on == 1
    assert not hasattr(wrap(sgd()), "consolidate_state_dict")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parts", "beside", "larc", "larc around"])
def test_lightning_saves_and_goes_on_with_it(kind, tmp_path):
    run_ranks(Path(__file__).with_name("zero_training.py"), 2, kind, tmp_path)
