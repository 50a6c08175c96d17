"""YAML files and mappings are data: nothing in them is ever run."""

import datetime

import pytest
import yaml
from omegaconf import OmegaConf

from lightning_novograd.config import parse_optim
from lightning_novograd.config.data import load_yaml, to_plain
from lightning_novograd.errors import ConfigError


def test_every_kind_of_plain_value_passes():
    value = {"a": [1, 2.5, True, None, "x"], "b": {"c": (1, 2)}}
    assert to_plain(value, "") == {"a": [1, 2.5, True, None, "x"], "b": {"c": [1, 2]}}
    assert to_plain(OmegaConf.create(value), "") == to_plain(value, "")


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": {"_target_": "x"}}, "top.a._target_"),
        ({"a": [{"_target_": "x"}]}, "top.a[0]._target_"),
        ({"a": {"_partial_": True}}, "top.a._partial_"),
        ({"a": print}, "top.a"),
        ({"a": {1}}, "top.a"),
        ({"a": b"x"}, "top.a"),
        ({"a": datetime.date(2020, 1, 1)}, "top.a"),
        ({"a": 1j}, "top.a"),
    ],
    ids=str,
)
def test_code_and_objects_are_refused_naming_the_registry(value, path):
    with pytest.raises(ConfigError, match="register_optimizer") as caught:
        to_plain(value, "top")
    assert caught.value.path == path


@pytest.mark.parametrize(
    "tagged",
    [
        "!!python/object/apply:os.system ['touch {ran}']",
        "!!python/name:os.system ''",
        "!mine {{x: 1}}",
        "!!python/tuple [1]",
    ],
)
def test_yaml_tags_are_refused_and_nothing_runs(tagged, tmp_path):
    ran = tmp_path / "ran"
    path = tmp_path / "config.yaml"
    path.write_text(f"optim: {{name: sgd, lr: {tagged.format(ran=ran)}}}")
    with pytest.raises(ConfigError, match=r"tags are refused.*register_optimizer") as caught:
        load_yaml(path)
    assert caught.value.path == str(path)
    assert not ran.exists()


@pytest.mark.parametrize("text", ["a: [1", "a: 1\n b: 2", "\x00", "{a: *nobody}"])
def test_what_is_not_yaml_says_so(text, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match="is not YAML") as caught:
        load_yaml(tmp_path / "config.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim:\n  lr: 1\n  lr: 2", "line 3, column 3: while constructing a mapping, found duplicate key lr; give it"),
        ("a: 1\noptim: &a {name: sgd, sched: *a}", "line 2, column 8: found unconstructable recursive node; an alias"),
        ("- &a [*a]", "line 1, column 3: found unconstructable recursive node; an alias (*) cannot stand inside of w"),
        ("a: 1\nlr: !!float x", "line 2, column 5: 'x' is not a value of type float"),
        ("lr: !!int ''", "line 1, column 5: '' is not a value of type int"),
        ("lr: !!bool x", "line 1, column 5: 'x' is not a value of type bool"),
        ("lr: !!timestamp x", "line 1, column 5: 'x' is not a value of type timestamp"),
        ("lr: 0b_", "line 1, column 5: '0b_' is not a value of type int"),
        ("[1]: 2", "line 1, column 1: while constructing a mapping, found unhashable key"),
        ("lr: !!str [1]", "line 1, column 5: expected a scalar node, but found sequence"),
        ("{lr: ${x}}", "is not YAML: line 1, column 7: while parsing a flow mapping, expected ',' or '}', but got '{'"),
        ("a: 1\n---\na: 2", "is not YAML: line 2, column 1: expected a single document in the stream, but found anoth"),
        ("a: " + 2000 * "[", "is nested too deeply"),
        ("3", "holds a single value, not a mapping"),
        ("true", "holds a single value, not a mapping"),
    ],
)
def test_what_cannot_be_loaded_is_one_line_with_its_place(text, message, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_yaml(path)
    assert caught.value.path == str(path)
    assert caught.value.problem.startswith(message)
    assert "\n" not in caught.value.problem
    assert "tags are refused" not in caught.value.problem
    assert not caught.value.problem.endswith("None"), "a cure that there is not"


def test_tags_of_plain_values_are_as_good_as_none(tmp_path):
    (tmp_path / "config.yaml").write_text("{lr: !!float 1, name: !!str sgd}")
    assert to_plain(load_yaml(tmp_path / "config.yaml"), "") == {"lr": 1.0, "name": "sgd"}


def test_anchors_and_merges(tmp_path):
    text = "base: &base {lr: 0.1, momentum: 0.9}\noptim: {<<: *base, name: sgd, lr: 0.2}\n"
    (tmp_path / "config.yaml").write_text(text)
    assert parse_optim(load_yaml(tmp_path / "config.yaml").optim).args == {"lr": 0.2, "momentum": 0.9}


def bomb(levels: int, again: str) -> str:
    """A YAML text of a few lines that stands for 9**levels values."""
    lines = [f"l0: &l0 {[1] * 9}"]
    lines += [f"l{i}: &l{i} [{', '.join([again.format(i - 1)] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


MANY = "holds more than 100000 values, counting those behind aliases (*) and interpolations each time"


@pytest.mark.parametrize("levels", [6, 12, 30])
def test_aliases_that_make_too_much_of_a_file_are_refused_at_once(levels, tmp_path):
    (tmp_path / "config.yaml").write_text(bomb(levels, "*l{}"))
    with pytest.raises(ConfigError) as caught:
        load_yaml(tmp_path / "config.yaml")
    assert caught.value.problem == MANY
    with pytest.raises(ConfigError, match="holds more than 100000 values"):
        to_plain(yaml.safe_load(bomb(levels, "*l{}")), "top")


@pytest.mark.parametrize("levels", [6, 12, 30])
def test_interpolations_that_make_too_much_of_a_config_are_refused_at_once(levels):
    cfg = OmegaConf.create(bomb(levels, '"${{l{}}}"'))
    with pytest.raises(ConfigError) as caught:
        to_plain(cfg, "top")
    assert (caught.value.path, caught.value.problem) == ("top", MANY)


def test_as_many_values_as_a_config_may_have():
    assert len(to_plain({"a": [1] * 99_990}, "")["a"]) == 99_990
    with pytest.raises(ConfigError, match="holds more than"):
        to_plain({"a": [1] * 100_000}, "top")
