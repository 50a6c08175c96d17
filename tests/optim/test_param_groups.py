"""Rules over names and module types -> param groups."""

import logging
from dataclasses import replace

import pytest
import torch
from mistakes import refused
from torch import nn

from lightning_novograd.errors import ConfigError
from lightning_novograd.optim.param_groups import ParamGroupRule, build_param_groups


class RootMeanSquareNorm(nn.Module):
    """A normalization layer that torch does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, 2))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv1d(3, 4, 5), nn.BatchNorm1d(4), nn.Conv1d(4, 4, 1, bias=False))
        self.attention = nn.MultiheadAttention(4, 2)
        self.recurrent = nn.LSTM(4, 4)
        self.norm = RootMeanSquareNorm()
        self.decoder = nn.Linear(4, 7)
        self.gain = nn.Parameter(torch.ones(()))


def built(*args, **kwargs) -> list[dict]:
    """The groups as an optimizer with these defaults takes them."""
    return [group.options({"lr": 0.1, "weight_decay": 0.01}) for group in build_param_groups(*args, **kwargs)]


def named(model: nn.Module, groups: list[dict]) -> dict[str, list[str]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {group.get("name", ""): [names[parameter] for parameter in group["params"]] for group in groups}


def rule(*match: str, path: str = "optim.param_groups[0]", **options) -> ParamGroupRule:
    return ParamGroupRule(match=match, options=options, path=path)


def test_without_rules_there_is_one_group_without_a_name():
    model = Net()
    (group,) = built(model)
    assert group.keys() == {"params"}
    assert list(map(id, group["params"])) == list(map(id, model.parameters()))


@pytest.mark.parametrize(
    ("no_decay", "names"),
    [
        pytest.param(
            ["bias"],
            "encoder.0.bias encoder.1.bias attention.in_proj_bias attention.out_proj.bias recurrent.bias_ih_l0 "
            "recurrent.bias_hh_l0 decoder.bias",
            id="bias",
        ),
        pytest.param(["norm"], "encoder.1.weight encoder.1.bias norm.scale", id="norm"),
        pytest.param(
            ["1d"],
            "gain encoder.0.bias encoder.1.weight encoder.1.bias attention.in_proj_bias attention.out_proj.bias "
            "recurrent.bias_ih_l0 recurrent.bias_hh_l0 decoder.bias",
            id="1d",
        ),
        pytest.param(
            ["ndim<=1"],
            "gain encoder.0.bias encoder.1.weight encoder.1.bias attention.in_proj_bias attention.out_proj.bias "
            "recurrent.bias_ih_l0 recurrent.bias_hh_l0 decoder.bias",
            id="ndim<=1",
        ),
        pytest.param(["decoder.*", "gain"], "gain decoder.weight decoder.bias", id="globs"),
        pytest.param(["encoder.?.weight"], "encoder.0.weight encoder.1.weight encoder.2.weight", id="one character"),
    ],
)
def test_no_decay(no_decay, names):
    model = Net()
    decay, exempt = built(model, no_decay=no_decay)
    assert (decay["name"], exempt["name"], exempt["weight_decay"]) == ("default", "default, no decay", 0.0)
    assert "weight_decay" not in decay
    assert set(named(model, [exempt])["default, no decay"]) == set(names.split())
    assert len(decay["params"]) + len(exempt["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("layer", [nn.BatchNorm2d, nn.InstanceNorm1d, nn.LayerNorm, nn.RMSNorm, nn.SyncBatchNorm])
def test_norm_knows_torchs_normalization_layers(layer):
    affine = {"affine": True} if layer is nn.InstanceNorm1d else {}
    model = nn.Sequential(nn.Linear(2, 2, bias=False), layer(2, **affine))
    _, exempt = built(model, no_decay=["norm"])
    assert list(map(id, exempt["params"])) == list(map(id, model[1].parameters()))


@pytest.mark.parametrize("shorthand", ["bias", "norm", "1d", "ndim<=1"])
def test_a_shorthand_may_match_nothing(shorthand):
    (group,) = built(nn.Linear(2, 2, bias=False), no_decay=[shorthand])
    assert len(group["params"]) == 1


def test_rules_in_order_the_first_that_matches_wins():
    model = Net()
    rules = [
        rule("encoder.0.*", lr=1.0),
        rule("encoder.*", lr=2.0, path="optim.param_groups[1]"),
        ParamGroupRule(module_type=("LSTM",), options={"lr": 3.0}, name="memory"),
    ]
    groups = built(model, rules)
    assert [group.get("lr") for group in groups] == [None, 1.0, 2.0, 3.0]
    assert [group["name"] for group in groups] == ["default", "encoder.0.*", "encoder.*", "memory"]
    assert named(model, groups)["encoder.*"] == ["encoder.1.weight", "encoder.1.bias", "encoder.2.weight"]
    assert {name.split(".")[0] for name in named(model, groups)["memory"]} == {"recurrent"}


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        (ParamGroupRule(module_type=("Conv*",)), "encoder.0.weight encoder.0.bias encoder.2.weight"),
        (ParamGroupRule(module_type=("_BatchNorm",)), "encoder.1.weight encoder.1.bias"),
        (ParamGroupRule(module_type=("Linear",), match=("*.weight",)), "attention.out_proj.weight decoder.weight"),
        (ParamGroupRule(match=("bias",), module_type=("Conv*", "LSTM")), "encoder.0.bias recurrent.bias_ih_l0 "
         "recurrent.bias_hh_l0"),
        (ParamGroupRule(match=("gain",)), "gain"),
    ],
    ids=["glob over types", "base class", "type and name", "type and shorthand", "exact name"],
)  # fmt: skip
def test_selectors(selector, names):
    model = Net()
    *_, group = built(model, [selector])
    assert set(named(model, [group])[selector.label]) == set(names.split())


def test_no_decay_splits_rules_but_a_rules_own_weight_decay_stays():
    model = Net()
    rules = [rule("encoder.*", lr=1.0), rule("decoder.*", weight_decay=0.5, path="optim.param_groups[1]")]
    groups = {group["name"]: group for group in built(model, rules, no_decay=["bias"])}
    assert list(groups) == ["default", "default, no decay", "encoder.*", "encoder.*, no decay", "decoder.*"]
    assert (groups["encoder.*, no decay"]["lr"], groups["encoder.*, no decay"]["weight_decay"]) == (1.0, 0.0)
    assert (groups["decoder.*"]["weight_decay"], len(groups["decoder.*"]["params"])) == (0.5, 2)


@pytest.mark.parametrize(
    ("rules", "no_decay", "path", "problem"),
    [
        pytest.param([rule("decodr.*")], [], "optim.param_groups[0].match", "did you mean 'decoder.*'?", id="misspelt"),
        pytest.param([rule("encoder")], [], "optim.param_groups[0].match", "did you mean 'encoder.*'?", id="no star"),
        pytest.param(
            [rule("encoder.*"), rule("encoder.0.*", path="optim.param_groups[1]")],
            [],
            "optim.param_groups[1].match",
            "matches only parameters that earlier rules have taken: encoder.0.bias, encoder.0.weight",
            id="taken",
        ),
        pytest.param(
            [ParamGroupRule(module_type=("Linaer",), path="optim.param_groups[0]")],
            [],
            "optim.param_groups[0].module_type",
            "did you mean 'Linear'?",
            id="type",
        ),
        pytest.param(
            [rule("decoder.*", "ln.*")],
            [],
            "optim.param_groups[0].match",
            "'ln.*' matches no parameter",
            id="one of two",
        ),
        pytest.param(
            [ParamGroupRule(module_type=("LSTM", "Foo"), path="optim.param_groups[0]")],
            [],
            "optim.param_groups[0].module_type",
            "no parameter belongs to a 'Foo'",
            id="one type of two",
        ),
        pytest.param(
            [ParamGroupRule(match=("*.weight", "gain"), module_type=("Linear",), path="optim.param_groups[0]")],
            [],
            "optim.param_groups[0].match",
            "'gain' matches no parameter of a Linear",
            id="not of this type",
        ),
        pytest.param(
            [ParamGroupRule(match=("1d",), module_type=("RootMeanSquareNorm",), path="optim.param_groups[0]")],
            [],
            "optim.param_groups[0].match",
            "'1d,RootMeanSquareNorm' matches no parameter",
            id="shorthand alone",
        ),
        pytest.param([], ["bias", "decoder.wieght"], "optim.no_decay", "did you mean 'decoder.weight'?", id="no_decay"),
    ],
)
def test_what_selects_nothing_is_an_error(rules, no_decay, path, problem):
    with refused(path, problem):
        built(Net(), rules, no_decay)


def test_a_shorthand_beside_others_may_match_nothing():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    groups = built(model, [rule("bias", "1.*", lr=1.0)])
    assert named(model, groups) == {"default": ["0.weight"], "bias,1.*": ["1.weight"]}


@pytest.mark.parametrize(
    ("rules", "index", "whose"),
    [
        ([rule("bias"), rule("gain")], 1, "optim.param_groups[0]"),
        ([rule("gain")], 0, "the parameters that no rule wants"),
    ],
    ids=["two rules", "default"],
)
def test_two_groups_of_one_name_are_an_error(rules, index, whose):
    """Lightning's LearningRateMonitor refuses them, but only when the fit begins."""
    name = "default" if len(rules) == 1 else "slow"
    rules = [replace(r, name=name, path=f"optim.param_groups[{i}]") for i, r in enumerate(rules)]
    with refused(f"optim.param_groups[{index}].name", f"{name!r} is the group of {whose} too"):
        built(Net(), rules)


def test_names_made_of_patterns_may_collide():
    rules = [ParamGroupRule(match=("*.bias",), module_type=("Conv1d",)), rule("*.bias", "Conv1d")]
    model = nn.ModuleDict({"a": nn.Conv1d(2, 2, 1), "b": nn.Linear(2, 2)})
    model.register_parameter("Conv1d", nn.Parameter(torch.ones(2)))
    with pytest.raises(ConfigError, match="give another name"):
        built(model, rules)


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("Weight[0]", "did you mean 'Weight[[]0]'? (brackets are glob syntax)"),
        ("block[1]", "did you mean 'block[[]1].*'?"),
        ("block[1].*", "did you mean 'block[[]1].*'? (brackets are glob syntax)"),
    ],
)
def test_brackets_in_names_are_escaped_in_hints(pattern, hint):
    model = nn.ModuleDict({"block[1]": nn.Linear(2, 2)})
    model.register_parameter("Weight[0]", nn.Parameter(torch.ones(2)))
    with pytest.raises(ConfigError) as caught:
        built(model, no_decay=[pattern])
    assert hint in caught.value.problem
    escaped = hint.split("'")[1]
    assert len(built(model, no_decay=[escaped])) == 2


def test_frozen_parameters_are_left_out_with_one_line(caplog):
    model = Net()
    model.encoder.requires_grad_(False)
    with caplog.at_level(logging.INFO, "lightning_novograd"):
        groups = built(model, [rule("decoder.*", lr=1.0)], no_decay=["bias"])
    assert not [name for names in named(model, groups).values() for name in names if name.startswith("encoder")]
    (record,) = caplog.records
    assert record.getMessage() == "5 frozen parameters (88 elements) are left out of the optimizer"


def test_a_rule_for_frozen_parameters_only_is_said_not_refused(caplog):
    model = Net()
    model.encoder.requires_grad_(False)
    groups = built(model, [rule("encoder.*", lr=1.0)])
    assert len(groups) == 1
    assert "'encoder.*' matches only frozen parameters" in caplog.text


def test_nothing_to_train_is_an_error():
    with pytest.raises(ConfigError, match=r"Linear has no trainable parameters \(2 frozen ones\)"):
        built(nn.Linear(2, 2).requires_grad_(False))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5)
        self.head.weight = self.embedding.weight


def test_a_shared_parameter_is_in_one_group_once():
    model = Tied()
    groups = built(model, [rule("embedding.*", "head.weight", lr=1.0)], no_decay=["head.*"])
    assert named(model, groups) == {
        "default, no decay": ["head.bias"],
        "embedding.*,head.weight, no decay": ["embedding.weight"],
    }


@pytest.mark.parametrize("pattern", ["head.*", "embedding.*"])
def test_a_shared_parameter_under_two_rules_is_an_error(pattern):
    with pytest.raises(ConfigError, match="a shared parameter has no unique rule") as caught:
        built(Tied(), [rule(pattern, lr=1.0)])
    assert caught.value.path == "optim.param_groups[0].match"
    names = 'match all its names, ["embedding.weight", "head.weight"]'
    for words in ("'embedding.weight'", "'head.weight'", "in no rule", f"optim.param_groups[0] ({pattern})", names):
        assert words in caught.value.problem


def test_a_shared_module_counts_once():
    layer = nn.Linear(2, 2)
    model = nn.ModuleDict({"left": layer, "right": layer})
    (group,) = built(model)
    assert list(map(id, group["params"])) == list(map(id, layer.parameters()))


@pytest.mark.parametrize(
    ("choice", "path"),
    [
        ({"no_decay": ["bias", "1d"]}, "optim.no_decay"),
        ({"rules": [rule("ndim<=1", lr=1.0)]}, "optim.param_groups[0].match"),
    ],
    ids=["no_decay", "rule"],
)
def test_dimensions_that_a_lazy_module_does_not_have_yet_are_not_guessed(choice, path):
    """Its weight, a matrix later, is a vector without elements until then."""
    model = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2))
    with pytest.raises(ConfigError, match=r"'1\.weight', which a lazy module gets .*: run a batch through") as caught:
        built(model, **choice)
    assert caught.value.path == path
    model[1].weight.requires_grad = False
    assert len(built(model, no_decay=["bias"])) == 2  # frozen, and as yet of no size
    model(torch.ones(1, 2))
    built(model, **choice)


@pytest.mark.parametrize("layers", [4, 8, 9])
def test_an_error_lists_the_first_names_of_the_module(layers):
    module = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(layers)))
    with pytest.raises(ConfigError) as error:
        built(module, [rule("decoder*", lr=0.1)])
    names = ", ".join(f"{index}.weight" for index in range(min(layers, 8)))
    assert error.value.problem.endswith(f" The module has: {names}{', ...' if layers > 8 else ''}")


DEPTHWISE = nn.ModuleDict(
    {
        "depthwise": nn.Conv1d(4, 4, 3, groups=4),
        "multiplied": nn.Conv2d(4, 8, 3, groups=4, bias=False),
        "transposed": nn.ConvTranspose1d(4, 4, 3, groups=4, bias=False),
        "grouped": nn.Conv1d(4, 4, 3, groups=2),
        "pointwise": nn.Conv1d(4, 4, 1),
        "of_one_channel": nn.Conv1d(1, 1, 3),
        "linear": nn.Linear(4, 4),
    }
)


def test_depthwise_convolutions_are_those_of_one_channel_each():
    groups = built(DEPTHWISE, [rule("depthwise", lr=1.0)])
    assert named(DEPTHWISE, groups)["depthwise"] == [
        "depthwise.weight",
        "depthwise.bias",
        "multiplied.weight",
        "transposed.weight",
    ]


@pytest.mark.parametrize(
    ("options", "lr", "weight_decay"),
    [
        ({"lr_mult": 0.5}, 0.05, None),
        ({"wd_mult": 3.0}, None, 0.03),
        ({"lr_mult": 0.0, "wd_mult": 0.0}, 0.0, 0.0),
        ({"lr_mult": 0.5, "options": {"weight_decay": 1.0}}, 0.05, 1.0),
    ],
    ids=["lr", "weight decay", "zero", "beside a value"],
)
def test_multipliers_are_of_the_optimizers_values(options, lr, weight_decay):
    _, group = built(Net(), [ParamGroupRule(match=("decoder.*",), **options)])
    assert (group.get("lr"), group.get("weight_decay")) == (
        lr if lr is None else pytest.approx(lr),
        weight_decay if weight_decay is None else pytest.approx(weight_decay),
    )


def test_no_decay_goes_before_a_multiplier():
    groups = built(Net(), [ParamGroupRule(match=("decoder.*",), wd_mult=2.0)], no_decay=["bias"])
    decay = {group["name"]: group.get("weight_decay") for group in groups}
    assert decay["decoder.*"] == pytest.approx(0.02)
    assert decay["decoder.*, no decay"] == 0


def test_an_optimizer_without_weight_decay_gets_none():
    _, exempt = build_param_groups(Net(), no_decay=["bias"])
    assert "weight_decay" not in exempt.options({"lr": 0.1})
