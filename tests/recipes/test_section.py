"""A section of the config checks its keys, types and ranges, and names what is wrong by its full path."""

import dataclasses

import pytest
from omegaconf import OmegaConf

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.section import Section, join, key


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


def test_values_are_checked_without_a_config_too():
    with pytest.raises(ConfigError, match=r"^width: must be at least 1, not 0"):
        Pool(width=0)


def test_paths_join():
    assert [join("", "a"), join("a", "b"), join("x.nemo:", "a")] == ["a", "a.b", "x.nemo:a"]
