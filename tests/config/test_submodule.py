"""The submodule that a block optimizes."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lightning_novograd.config import build_optimizers
from lightning_novograd.errors import ConfigError


class Lit(pl.LightningModule):
    """A model with a submodule, and with properties that raise outside of a training."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_submodule_is_named_by_its_path(compiled):
    model = Lit()
    if compiled:
        model.net = torch.compile(model.net, backend="eager")
    optimizer = build_optimizers({"name": "sgd", "lr": 0.1, "module": "net.1"}, model)["optimizer"]
    assert [p.shape for p in optimizer.param_groups[0]["params"]] == [(2, 2), (2,)]


@pytest.mark.parametrize("name", ["trainer", "net.2", "net.0.weight", "forward", "__dict__"])
def test_nothing_but_submodules_is_looked_at(name):
    with pytest.raises(ConfigError, match="Lit has no submodule") as caught:
        build_optimizers({"name": "sgd", "lr": 0.1, "module": name}, Lit())
    assert caught.value.path == "optim.module"


@pytest.mark.parametrize(
    "config",
    [
        {"optim": {"name": "sgd", "lr": 0.1}},
        {"optim": {"name": "sgd", "lr": 0.1}, "model": {"width": 3}},
        {"optim": {"name": "sgd", "lr": 0.1}, "seed": 1},
    ],
)
def test_a_whole_config_is_told_from_blocks_by_name(config):
    with pytest.raises(ConfigError, match=r"give what is in (it|its key 'optim')"):
        build_optimizers(config, Lit())


def test_a_submodule_may_be_called_optim():
    model = nn.ModuleDict({"optim": nn.Linear(2, 2)})
    assert list(build_optimizers({"optim": {"name": "sgd", "lr": 0.1}}, model)) == ["optim"]


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        ({"name": "sgd"}, Lit().parameters(), "generator"),
        ({"name": "sgd"}, [], "list"),
        (Lit(), {"name": "sgd"}, "dict"),
    ],
)
def test_what_is_no_model_is_refused(first, second, kind):
    with pytest.raises(TypeError, match=f"an nn.Module; the second is a {kind}"):
        build_optimizers(first, second)
