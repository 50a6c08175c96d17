"""A section of the config checks its keys, types and ranges, and names what is wrong by its full path."""

import dataclasses

import pytest
from omegaconf import OmegaConf

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.common.section import Section, _checked, join, key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool(Section):
    width: int = key(low=1, high=9)
    share: float = key(0.5, above=0.0, below=1.0)
    kind: str | None = key("mean", allowed=["mean", "max", None])
    size: int | float = key(1)
    names: tuple[str, ...] = key(())

    fixed = {"dim": 1}  # noqa: RUF012

    def check(self):
        if self.kind == "max" and self.width == 1:
            raise ConfigError("width", "1 leaves nothing to choose from")


def test_values_are_read_with_defaults_and_numbers_made_float():
    pool = Pool.read({"width": 3, "share": 0.25, "kind": None, "dim": 1}, "pool")
    assert pool == Pool(width=3, share=0.25, kind=None)
    assert isinstance(pool.read({"width": 1, "size": 2}, "").size, int)
    with pytest.raises(dataclasses.FrozenInstanceError):
        pool.width = 4


BAD = [
    (
        {"width": 1, "sahre": 0.5},
        "pool.sahre",
        "unknown key; did you mean 'share'? Allowed: kind, names, share, size, width",
    ),
    ({}, "pool.width", "is missing"),
    ({"width": 10}, "pool.width", "must be at most 9, not 10"),
    ({"width": "1"}, "pool.width", "must be a whole number, not '1'"),
    ({"width": 1, "share": 1}, "pool.share", "must be less than 1.0, not 1.0"),
    ({"width": 1, "share": True}, "pool.share", "must be a number, not True"),
    ({"width": 1, "share": float("inf")}, "pool.share", "must be finite, not inf"),
    ({"width": 1, "kind": "maxx"}, "pool.kind", "'maxx' is unknown; did you mean 'max'? Allowed: max, mean, null"),
    ({"width": 1, "kind": "max"}, "pool.width", "1 leaves nothing to choose from"),
    ({"width": 1, "size": "1"}, "pool.size", "must be a whole number or a number, not '1'"),
    ({"width": 1, "dim": 2}, "pool.dim", "2 is not supported; only 1, or leave the key out"),
    ({"width": 1, "_target_": "os.mkdir"}, "pool._target_", "is refused"),
    (["width"], "pool", "must be a mapping, not ['width']"),
    (OmegaConf.create({"width": "???"}), "pool", "width"),
    (OmegaConf.create({"width": "${nothing}"}), "pool", "nothing"),
]


@pytest.mark.parametrize(("cfg", "path", "problem"), BAD)
def test_what_is_wrong_is_named(cfg, path, problem):
    with pytest.raises(ConfigError) as error:
        Pool.read(cfg, "pool")
    assert error.value.path == path
    assert problem in error.value.problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kinds(Section):
    flag: bool = key(False)
    count: int | None = key(None, low=0)
    rate: float = key(1.0, above=0.5)
    text: str | None = key(None)
    block: dict = key(dataclasses.MISSING)
    width: int = key(1, low=1, single=True)
    plain: int = key(1)
    power: int = key(1, allowed=[1, 2])


KINDS = [
    ("flag", 1, "must be true or false, not 1"),
    ("flag", None, "must be true or false, not None"),
    ("count", 1.0, "must be a whole number or null, not 1.0"),
    ("count", True, "must be a whole number or null, not True"),
    ("count", -1, "must be at least 0, not -1"),
    ("rate", "1", "must be a number, not '1'"),
    ("rate", False, "must be a number, not False"),
    ("rate", 0.5, "must be more than 0.5, not 0.5"),
    ("text", 1, "must be a string or null, not 1"),
    ("block", [1], "must be dict, not [1]"),
    ("width", [1, 2], "must be one number or a list of one, not [1, 2]"),
    ("width", [], "must be one number or a list of one, not []"),
    ("width", [0], "must be at least 1, not 0"),
    ("plain", [1], "must be a whole number, not [1]"),
    ("power", True, "True is unknown. Allowed: 1, 2"),
    ("power", 3, "3 is unknown. Allowed: 1, 2"),
]


@pytest.mark.parametrize(("name", "value", "problem"), KINDS)
def test_every_kind_of_value_is_said_in_the_words_of_a_config(name, value, problem):
    with pytest.raises(ConfigError) as error:
        Kinds.read({"block": {}, name: value}, "")
    assert (error.value.path, error.value.problem) == (name, problem)


def test_values_that_fit():
    given = {"flag": True, "count": None, "rate": 2, "text": "", "block": {"a": [1]}, "width": (3,), "power": 2}
    kinds = Kinds.read(given, "")
    assert vars(kinds) == {**given, "width": 3, "plain": 1}
    assert isinstance(kinds.rate, float)
    assert Kinds.read({"block": {}, "width": [4]}, "").width == 4


def test_values_are_checked_without_a_config_too():
    with pytest.raises(ConfigError, match=r"^width: must be at least 1, not 0"):
        Pool(width=0)


def test_paths_join():
    assert [join("", "a"), join("a", "b"), join("x.nemo:", "a")] == ["a", "a.b", "x.nemo:a"]


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("plain", "a" * 9999, f"must be a whole number, not '{'a' * 196}..."),
        ("plain", [10**5000], "must be a whole number, not a list of numbers that are too long to show"),
        ("width", -(10**5000), "must be at least 1, not a whole number of 16610 bits"),
        ("rate", 10**400, "must be a number that a float can hold, not a whole number of 1329 bits"),
        ("power", 10**5000, "a whole number of 16610 bits is unknown. Allowed: 1, 2"),
    ],
    ids=["text", "list", "below", "float", "choice"],
)
def test_values_of_any_length_are_short_in_a_message(name, value, problem):
    with pytest.raises(ConfigError) as error:
        Kinds.read({"block": {}, name: value}, "")
    assert (error.value.path, error.value.problem) == (name, problem)


def test_a_whole_number_of_any_length_has_a_range_too():
    with pytest.raises(ConfigError, match=r"^width: must be at most 3, not a whole number"):
        _checked(10**5000, int, {"high": 3}, "width")
