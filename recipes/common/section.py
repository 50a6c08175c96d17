"""A section of the model config: a frozen dataclass whose keys, types and ranges are checked when it is built."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_novograd.errors import ConfigError, choices


def key(
    default: Any = dataclasses.MISSING,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    allowed: Sequence[Any] | None = None,
    single: bool = False,
) -> Any:
    """Declare a key of a :class:`Section`.

    Args:
        default: its value where the config does not give it; without one the key is required.
        low: smallest allowed number.
        above: the number must be greater than this.
        high: largest allowed number.
        below: the number must be smaller than this.
        allowed: the only values it may have.
        single: NeMo's one-element list is accepted too, ``[11]`` for ``11``.
    """
    limits = {"low": low, "above": above, "high": high, "below": below, "allowed": allowed, "single": single}
    return dataclasses.field(default=default, metadata=limits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """Base of all sections; subclasses declare their keys with :func:`key` and relate them in :meth:`check`.

    Raises:
        ConfigError: a key is unknown or missing, or its value has the wrong type or is out of range; the message
            names the key's full path, what is allowed and the nearest match.

    Example:
        >>> @dataclasses.dataclass(frozen=True, kw_only=True)
        ... class Pool(Section):
        ...     width: int = key(low=1)
        >>> Pool.read({"widht": 3}, "model.pool")
        Traceback (most recent call last):
        ...
        lightning_novograd.errors.ConfigError: model.pool.widht: unknown key; did you mean 'width'? Allowed: width
    """

    # keys that NeMo knows and we do not implement, with the only value that they may have here
    fixed: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _checked(getattr(self, field.name), hints[field.name], field.metadata, field.name)
            object.__setattr__(self, field.name, value)
        self.check()

    def check(self) -> None:
        """Refuse values that are fine one by one but not together."""

    @classmethod
    def read(cls, cfg: Any, path: str) -> Self:
        """Build the section from a mapping.

        Args:
            cfg: plain mapping, or an OmegaConf one.
            path: where it stands in the whole config, for error messages: ``"model.encoder"``.
        """
        mapping = plain_mapping(cfg, path)
        fields = {f.name: f for f in dataclasses.fields(cls)}
        values = {}
        for name, value in mapping.items():
            if name in fields:
                values[name] = value
            elif name in cls.fixed:
                if value != cls.fixed[name]:
                    raise ConfigError(
                        join(path, name), f"{value!r} is not supported; only {cls.fixed[name]!r}, or leave the key out"
                    )
            elif name == "_target_":
                raise ConfigError(join(path, name), "is refused: a config is data and names no class to run")
            else:
                raise ConfigError(join(path, name), f"unknown key{choices(name, fields)}")
        for name, field in fields.items():
            if field.default is dataclasses.MISSING and name not in values:
                raise ConfigError(join(path, name), "is missing")
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(join(path, error.path), error.problem) from None


def join(path: str, name: object) -> str:
    """`path` continued by a key; an empty `path`, or ``"file:"``, is a whole document."""
    return f"{path}{'' if path.endswith(':') else '.'}{name}" if path else str(name)


def plain_mapping(cfg: Any, path: str) -> dict[str, Any]:
    """`cfg` as a plain dict with its interpolations resolved, or a ConfigError."""
    if OmegaConf.is_config(cfg):
        try:
            cfg = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            raise ConfigError(path, str(error)) from None
    if not isinstance(cfg, Mapping):
        raise ConfigError(path, f"must be a mapping, not {_shown(cfg)}")
    return dict(cfg)


def _checked(value: Any, hint: Any, limits: Mapping[str, Any], name: str) -> Any:
    if limits.get("single") and isinstance(value, (list, tuple)):
        if len(value) != 1:
            raise ConfigError(name, f"must be one number or a list of one, not {_shown(value)}")
        value = value[0]
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    allowed = limits.get("allowed")
    if allowed is not None:
        if value not in allowed or isinstance(value, bool):
            names = ["null" if a is None else str(a) for a in allowed]
            raise ConfigError(
                name, f"{_shown(value)} is unknown{choices(_shown(value) if isinstance(value, int) else value, names)}"
            )
        return value
    if float in kinds and isinstance(value, int) and not isinstance(value, bool) and int not in kinds:
        value = _as_float(value, name)
    if not any(_is_a(value, kind) for kind in kinds):
        wanted = " or ".join(_KIND_NAMES.get(kind, getattr(kind, "__name__", str(kind))) for kind in kinds)
        raise ConfigError(name, f"must be {wanted}, not {_shown(value)}")
    if isinstance(value, (int, float)):
        _check_range(value, limits, name)
    return value


_KIND_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a string",
    types.NoneType: "null",
}


def _is_a(value: Any, kind: Any) -> bool:
    return isinstance(value, typing.get_origin(kind) or kind) and (kind is bool or not isinstance(value, bool))


def _check_range(value: float, limits: Mapping[str, Any], name: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(name, f"must be finite, not {_shown(value)}")
    bounds = {
        "at least": (limits.get("low"), lambda bound: value >= bound),
        "more than": (limits.get("above"), lambda bound: value > bound),
        "at most": (limits.get("high"), lambda bound: value <= bound),
        "less than": (limits.get("below"), lambda bound: value < bound),
    }
    for words, (bound, holds) in bounds.items():
        if bound is not None and not holds(bound):
            raise ConfigError(name, f"must be {words} {bound}, not {_shown(value)}")


def _as_float(value: int, name: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ConfigError(name, f"must be a number that a float can hold, not {_shown(value)}") from None


def _shown(value: Any) -> str:
    """A value in a message, cut: a file may hold anything, and Python prints no int of 5000 digits."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a whole number of {value.bit_length()} bits"
    try:
        text = repr(value)
    except ValueError:  # such an int inside of it
        text = f"a {type(value).__name__} of numbers that are too long to show"
    return text if len(text) <= 200 else f"{text[:197]}..."
