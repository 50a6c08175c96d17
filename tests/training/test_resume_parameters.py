"""Momenta stay with their parameters: a config that would hand them to others is refused at resume."""

import pytest
import torch
from tiny_fit import Net, loader, trainer

from lightning_novograd.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|config differ).*")


def sgd(**changes):
    return {"name": "sgd", "lr": 0.1, "momentum": 0.9, **changes}


class Two(Net):
    """With two layers alike, whose momenta could change places."""

    def __init__(self, optim):
        super().__init__(optim)
        self.other = torch.nn.Linear(3, 2)

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + self.other(batch).square().mean()


@pytest.fixture
def resumed(tmp_path):
    """A function of two blocks: trains an epoch with one, and another with the other; the resumed module."""

    def fit(before, after):
        run = trainer(max_epochs=1)
        run.fit(Two(before), loader())
        run.save_checkpoint(tmp_path / "last.ckpt")
        net = Two(after)
        trainer(max_epochs=2).fit(net, loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
        return net

    return fit


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([{"match": "layer.bias", "lr": 0.01}], [{"match": "other.bias", "lr": 0.01}]),
        (
            [{"match": "layer.bias", "lr": 0.01, "name": "one"}, {"match": "other.bias", "lr": 0.02, "name": "two"}],
            [{"match": "other.bias", "lr": 0.02, "name": "one"}, {"match": "layer.bias", "lr": 0.01, "name": "two"}],
        ),
    ],
    ids=["another pattern", "swapped"],
)
def test_states_of_other_parameters_are_refused(before, after, resumed):
    with pytest.raises(ConfigError, match=r"optim\.param_groups: the checkpoint has the state of '.*' where the"):
        resumed(sgd(param_groups=before), sgd(param_groups=after))


def test_other_parameters_without_decay_are_refused(resumed):
    before, after = (sgd(weight_decay=0.1, no_decay=[name]) for name in ("layer.*", "other.*"))
    with pytest.raises(ConfigError, match=r"the state of 'other\.weight' where the config puts 'layer\.weight'"):
        resumed(before, after)


def test_another_name_of_a_group_is_none_of_its_parameters(resumed):
    before, after = (sgd(param_groups=[{"match": "layer.bias", "lr": 0.01, "name": name}]) for name in ("a", "b"))
    assert resumed(before, after).trainer.global_step == 8
