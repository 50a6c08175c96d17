"""Schedules of rules in a fit: how Lightning steps them."""

import lightning.pytorch as pl
import pytest
import torch
from tiny_fit import Net, loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")
PLATEAU = {
    "name": "ReduceLROnPlateau",
    "monitor": "loss",
    "patience": 0,
    "threshold": 1e9,
    "factor": 0.5,
}  # no loss is good


class Lrs(pl.Callback):
    """Notes the LRs that each step sees, by group."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append([group["lr"] for group in optimizer.param_groups])


def lrs_of(block, **kwargs):
    """Of bias and weight at each of 4 steps in 2 epochs."""
    torch.manual_seed(0)
    lrs = Lrs()
    fit = trainer(max_epochs=2, callbacks=[lrs], **kwargs)
    fit.fit(Net({"name": "sgd", "lr": 0.1, **block}), loader(4))
    return lrs.seen, fit


@pytest.mark.parametrize(
    ("pace", "biases"),
    [
        ({}, [0.1, 0.1, 0.05, 0.05]),
        ({"interval": "step"}, [0.1, 0.05, 0.025, 0.0125]),
        ({"interval": "step", "frequency": 2}, [0.1, 0.1, 0.05, 0.05]),
    ],
)
def test_a_plateau_of_a_rule_is_stepped_with_its_metric(pace, biases):
    seen, fit = lrs_of({"param_groups": [{"match": "*bias", "sched": {**PLATEAU, **pace}}]})
    assert [lrs[1] for lrs in seen] == pytest.approx(biases)
    assert {lrs[0] for lrs in seen} == {0.1}
    (config,) = fit.lr_scheduler_configs
    assert (config.monitor, config.reduce_on_plateau) == ("loss", True)


def test_a_chain_beside_the_schedule_of_a_rule():
    chain = {"name": "ChainedScheduler", "schedulers": [{"name": "ExponentialLR", "gamma": 0.5}], "interval": "step"}
    seen, _ = lrs_of({"sched": chain, "param_groups": [{"match": "*bias", "sched": {"name": "cosine"}}]})
    assert [lrs[0] for lrs in seen] == pytest.approx([0.1, 0.05, 0.025, 0.0125])
    assert [lrs[1] for lrs in seen] == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], rel=1e-5)
