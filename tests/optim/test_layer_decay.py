"""Learning rates that fall from layer to layer."""

import pytest
import torch
from torch import nn

from lightning_novograd.errors import ConfigError
from lightning_novograd.optim.layer_decay import LayerDecay, layer_names
from lightning_novograd.optim.param_groups import ParamGroupRule, build_param_groups


class Transformer(nn.Module):
    """An embedding, blocks with lists of their own inside, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(4), "mlp": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))})
            for _ in range(3)
        )
        self.head = nn.Linear(4, 5)

    def layer_of(self, name: str) -> int:
        """As models tell their own depth."""
        first, second = name.split(".")[:2]
        return int(second) + 1 if first == "blocks" else 0 if first == "embed" else 4

    def coarse(self, name: str) -> int:
        return 1 if name.startswith("head") else 0

    def negative(self, name: str) -> int:
        return -1

    def text(self, name: str) -> str:
        return name


def names_of(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]


@pytest.mark.parametrize(
    ("module", "layers"),
    [
        (Transformer(), ["embed", "blocks.0", "blocks.1", "blocks.2", "head"]),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), ["0", "2"]),
        (
            nn.ModuleDict({"layer1": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "fc": nn.Linear(2, 2)}),
            ["layer1.0", "layer1.1", "fc"],
        ),
        (
            nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))),
            ["0.0", "0.1", "1.0"],
        ),
        (nn.Linear(2, 2), [""]),
    ],
    ids=["transformer", "sequential", "stages by name", "stages in a list", "one layer"],
)
def test_layers_are_elements_of_the_outermost_list(module, layers):
    assert list(dict.fromkeys(layer_names(module, names_of(module)).values())) == layers


@pytest.mark.parametrize(
    ("layers", "scales"),
    [
        ("auto", [0.0625, 0.125, 0.25, 0.5, 1.0]),
        ("layer_of", [0.0625, 0.125, 0.25, 0.5, 1.0]),
        ("coarse", [0.5, 0.5, 0.5, 0.5, 1.0]),
        (("embed.*", "blocks.[01].*", "blocks.2.*"), [0.125, 0.25, 0.25, 0.5, 1.0]),
    ],
    ids=["auto", "method", "coarse method", "globs"],
)
def test_each_layer_has_the_rate_of_the_one_above_times_the_decay(layers, scales):
    model = Transformer()
    found = LayerDecay(decay=0.5, layers=layers).scales(model, names_of(model))
    order = ["embed.weight", *(f"blocks.{i}.norm.weight" for i in range(3)), "head.bias"]
    assert [found[name] for name in order] == pytest.approx(scales)
    assert found["blocks.1.mlp.0.weight"] == found["blocks.1.norm.bias"]


@pytest.mark.parametrize(
    ("layers", "problem"),
    [
        (("embed.*", "block.0.*"), "'block.0.*' matches no parameter"),
        ("depth", "Transformer has no method 'depth'"),
        ("negative", "Transformer.negative('embed.weight') returned -1"),
        ("text", "returned 'embed.weight'; expected the layer's index"),
    ],
)
def test_layers_that_cannot_be_found_are_an_error(layers, problem):
    model = Transformer()
    with pytest.raises(ConfigError) as caught:
        LayerDecay(decay=0.5, layers=layers).scales(model, names_of(model))
    assert caught.value.path == "optim.layer_decay.layers"
    assert problem in caught.value.problem


def test_groups_are_split_by_layer_and_by_decay():
    groups = build_param_groups(Transformer(), no_decay=["norm"], layer_decay=LayerDecay(decay=0.5))
    assert [(g.name, len(g.params)) for g in groups] == [
        ("default", 2),
        ("default, lr x 0.5", 4),
        ("default, lr x 0.5, no decay", 2),
        ("default, lr x 0.25", 4),
        ("default, lr x 0.25, no decay", 2),
        ("default, lr x 0.125", 4),
        ("default, lr x 0.125, no decay", 2),
        ("default, lr x 0.0625", 1),
    ]
    rates = [group.options({"lr": 0.8, "weight_decay": 0.1}).get("lr", 0.8) for group in groups]
    assert rates == pytest.approx([0.8, 0.4, 0.4, 0.2, 0.2, 0.1, 0.1, 0.05])


def test_a_rules_factor_multiplies_and_its_lr_stays():
    rules = [
        ParamGroupRule(match=("blocks.2.*",), lr_mult=0.5),
        ParamGroupRule(match=("embed.*",), options={"lr": 0.3}),
    ]
    groups = build_param_groups(Transformer(), rules, layer_decay=LayerDecay(decay=0.5))
    rates = {g.name: g.options({"lr": 0.8, "weight_decay": 0.0}).get("lr") for g in groups}
    assert rates["blocks.2.*, lr x 0.5"] == pytest.approx(0.2)
    assert rates["embed.*"] == 0.3


def test_a_shared_parameter_has_the_layer_of_its_first_name():
    model = nn.ModuleDict({"embed": nn.Embedding(3, 2), "middle": nn.Linear(2, 2), "head": nn.Linear(2, 3, bias=False)})
    model["head"].weight = model["embed"].weight
    tied, middle = sorted(build_param_groups(model, layer_decay=LayerDecay(decay=0.5)), key=lambda g: g.lr_scale)
    assert (tied.lr_scale, len(tied.params), middle.lr_scale) == (0.5, 1, 1.0)


def test_a_decay_of_one_changes_nothing():
    model = Transformer()
    (group,) = build_param_groups(model, layer_decay=LayerDecay(decay=1.0))
    assert group.options({"lr": 0.1}).keys() == {"params"}
    assert torch.equal(group.params[0], model.embed.weight)
