"""YAML files and mappings are data: nothing in them is ever run."""

import datetime

import pytest
from omegaconf import OmegaConf

from lightning_novograd.config import parse_optim
from lightning_novograd.errors import ConfigError
from lightning_novograd.plain import load_yaml, to_plain


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


def test_anchors_and_merges(tmp_path):
    text = "base: &base {lr: 0.1, momentum: 0.9}\noptim: {<<: *base, name: sgd, lr: 0.2}\n"
    (tmp_path / "config.yaml").write_text(text)
    assert parse_optim(load_yaml(tmp_path / "config.yaml").optim).args == {"lr": 0.2, "momentum": 0.9}
