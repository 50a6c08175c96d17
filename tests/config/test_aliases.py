"""A setting under two names: one value is taken, two are refused, and null beside a value says nothing."""

import pytest

from lightning_novograd.config import parse_optim
from lightning_novograd.errors import ConfigError

SCHED = {"name": "WarmupAnnealing", "interval": "epoch"}
# where the block has both names: its part, the alias with a value, our key with another, what the alias means
PAIRS = [
    pytest.param("sched", ("t_max_epochs", 3), ("max_epochs", 4), 3, id="t_max_epochs"),
    pytest.param("larc", ("larc_eta", 0.25), ("trust_coefficient", 0.5), 0.25, id="larc_eta"),
    pytest.param("larc", ("larc_mode", "clip"), ("clip", False), True, id="clip"),
    pytest.param("larc", ("larc_mode", "scale"), ("clip", True), False, id="scale"),
    pytest.param("larc", ("epsilon", 1e-7), ("eps", 1e-6), 1e-7, id="epsilon"),
]


def parsed(part, **keys):
    return parse_optim({"name": "sgd", "lr": 0.1, part: {**(SCHED if part == "sched" else {}), **keys}})


def value_of(config, part, key):
    return getattr(config.sched, key) if part == "sched" else config.larc.args[key]


@pytest.mark.parametrize(("part", "alias", "own", "meaning"), PAIRS)
@pytest.mark.parametrize("alias_first", [True, False])
def test_two_values_are_refused(part, alias, own, meaning, alias_first):
    pairs = [alias, own] if alias_first else [own, alias]
    with pytest.raises(ConfigError, match=f"{own[0]} is {own[1]!r}; give one") as caught:
        parsed(part, **dict(pairs))
    assert caught.value.path == f"optim.{part}.{alias[0]}"
    with pytest.raises(ConfigError, match="give one"):
        parsed(part, **dict([alias, (own[0], meaning)]))


@pytest.mark.parametrize(("part", "alias", "own", "meaning"), PAIRS)
def test_null_beside_a_value_says_nothing(part, alias, own, meaning):
    assert value_of(parsed(part, **dict([(own[0], None), alias])), part, own[0]) == meaning
    assert value_of(parsed(part, **dict([alias, (own[0], None)])), part, own[0]) == meaning
    if alias[0] != "larc_mode":
        assert value_of(parsed(part, **dict([(alias[0], None), own])), part, own[0]) == own[1]
        assert value_of(parsed(part, **dict([own, (alias[0], None)])), part, own[0]) == own[1]


@pytest.mark.parametrize("where", ["args", "params"])
def test_nemos_legacy_args_beside_the_block(where):
    def legacy(**values):
        return {"name": "auto", "params": values} if where == "params" else values

    assert parse_optim({"name": "sgd", "lr": None, "args": legacy(lr=0.2)}).args["lr"] == 0.2
    assert parse_optim({"name": "sgd", "lr": 0.1, "args": legacy(lr=None)}).args["lr"] == 0.1
    with pytest.raises(ConfigError, match=r"0.2, but optim.lr is 0.1; give one") as caught:
        parse_optim({"name": "sgd", "lr": 0.1, "args": legacy(lr=0.2)})
    assert caught.value.path == ("optim.args.params.lr" if where == "params" else "optim.args.lr")
    with pytest.raises(ConfigError, match="give one"):
        parse_optim({"name": "sgd", "args": {"name": "auto", "lr": 0.1, "params": {"lr": 0.2}}})
