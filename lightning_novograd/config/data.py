"""Configs of any make -> plain dicts, lists, numbers, texts. Configs are data: nothing is called or imported here."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from omegaconf import Container, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml.constructor import ConstructorError

from lightning_novograd.config.arguments import LARGEST_INTEGER
from lightning_novograd.config.parse.targets import name_for, registered_at
from lightning_novograd.errors import ConfigError

# Hydra's instantiate, and NeMo's older `cls`, run whatever import path they are given
_CODE_KEYS = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_", "cls")
_REGISTRY = "classes are chosen by `name` from the registry (register_optimizer, register_scheduler)"
_MAX_DEPTH = 20
# Values of one block or file; more come of a text that repeats parts of itself, nine times nine times nine ...
_MAX_VALUES = 100_000
_TOO_MANY = f"holds more than {_MAX_VALUES} values, counting those behind aliases (*) and interpolations each time"
_MISSING = "is '???', a mandatory value that nobody has set"
# What PyYAML says -> what to do about it
_CURES = {
    "could not determine a constructor": f"tags are refused, {_REGISTRY}",
    "found duplicate key": "give it once",
    "recursive node": "an alias (*) cannot stand inside of what it names (&)",
    "but got '{'": "inside of braces an interpolation needs quotes, '${key}'",
}


def to_plain(value: Any, path: str) -> Any:
    """`value` with interpolations resolved, as dict, list, str, int, float, bool and None only.

    Raises:
        ConfigError: a `_target_` that is no registered class, a Python object, a key that is no text, NaN or infinity,
            an interpolation that does not resolve, a missing value (`???`).

    """
    if isinstance(value, Container):
        _count_down(value, path, iter(range(_MAX_VALUES)), _MAX_DEPTH)
        try:
            value = OmegaConf.to_container(value, resolve=True, throw_on_missing=True, enum_to_str=True)
        except OmegaConfBaseException as error:
            where = path + _below(value, str(error.full_key or ""))
            raise ConfigError(where, f"does not resolve: {_said(error)}") from error
    return _plain(value, path, _MAX_DEPTH, iter(range(_MAX_VALUES)))


def _count_down(container: Container, path: str, budget: Iterator[int], depth: int) -> None:
    """Take one of `budget` for each value that `container` has once interpolations are resolved, before they are."""
    keys: Any = range(len(container)) if isinstance(container, ListConfig) else container
    for key in keys if depth and not container._is_none() and not container._is_missing() else ():
        if next(budget, None) is None:
            raise ConfigError(path, _TOO_MANY)
        value = None
        with suppress(OmegaConfBaseException):  # which whoever resolves it will be told
            value = container[key]
        if isinstance(value, Container):
            _count_down(value, path, budget, depth - 1)


def _below(container: Container, full_key: str) -> str:
    """Where the node `full_key`, which counts from the root of its config, is in `container`: `.lr` or `[0].lr`."""
    tail = full_key.removeprefix(container._get_full_key(None))
    return tail if tail.startswith((".", "[")) or not tail else f".{tail}"


def _plain(value: Any, path: str, depth: int, budget: Iterator[int]) -> Any:
    if next(budget, None) is None:
        raise ConfigError(path, _TOO_MANY)
    if depth == 0:
        raise ConfigError(path, f"nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, Container):
        return to_plain(value, path)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(path, f"key {key!r} is not a text")
            if key in _CODE_KEYS and not (key == "_target_" and registered_at(value[key])):
                problem = f"{value[key]!r} is refused: a config cannot name code; {_REGISTRY}"
                raise ConfigError(f"{path}.{key}", f"{problem}{name_for(value[key]) if key == '_target_' else ''}")
        return {str(key): _plain(item, f"{path}.{key}", depth - 1, budget) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{index}]", depth - 1, budget) for index, item in enumerate(value)]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if abs(value) > LARGEST_INTEGER:
            raise ConfigError(path, f"an integer of {value.bit_length()} bits is too large; at most 63 bits")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(path, f"{value} is not a finite number")
        return float(value)
    if isinstance(value, str):
        if value == "???":
            raise ConfigError(path, _MISSING)
        if "${" in value:
            raise ConfigError(path, f"the interpolation {value!r} is unresolved; load the file with OmegaConf or Hydra")
        return str(value)
    raise ConfigError(path, f"{value!r} is a Python object ({type(value).__name__}), not data; {_REGISTRY}")


def load_yaml(path: Path | str) -> Any:
    """The YAML file at `path` as an OmegaConf container.

    Raises:
        ConfigError: no such file, not YAML, no mapping or list, a key given twice, an alias that holds itself, aliases
            that make too much of it, a value that is not what its tag says, or tags that would build Python objects.

    """
    try:
        _check_aliases(path)
        return OmegaConf.load(path)
    except ConfigError:
        raise
    except OSError as error:
        # one without a reason is OmegaConf's own
        problem = f"cannot be read: {error.strerror}" if error.strerror else "holds a single value, not a mapping"
        raise ConfigError(str(path), problem) from error
    except ConstructorError as error:
        raise ConfigError(str(path), _marked(error)) from error
    except yaml.MarkedYAMLError as error:
        raise ConfigError(str(path), f"is not YAML: {_marked(error)}") from error
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError(str(path), f"is not YAML: {' '.join(str(error).split())}") from error
    except (*_VALUE_ERRORS, RecursionError) as error:
        raise ConfigError(str(path), _located(path, error)) from error


def _check_aliases(path: Path | str) -> None:
    """Refuse a file whose aliases stand for more values than a config has; OmegaConf would copy each of them."""
    text = Path(path).read_bytes()
    if b"*" not in text or b"&" not in text:
        return
    root = yaml.compose(text, yaml.SafeLoader)
    if root is not None and _values(root, {}) > _MAX_VALUES:
        raise ConfigError(str(path), _TOO_MANY)


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values `node` stands for; one that holds itself, which the loader refuses, counts once."""
    if id(node) not in known:
        known[id(node)] = 1
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        items = node.value if isinstance(node, yaml.SequenceNode) else [item for pair in pairs for item in pair]
        known[id(node)] += sum(_values(item, known) for item in items)
    return known[id(node)]


def select(document: Any, path: str) -> Any:
    """What an OmegaConf document has at the dotted `path`, interpolations resolved; None if nothing.

    Raises:
        ConfigError: an interpolation on the way does not resolve, or a value is missing (`???`).

    """
    try:
        return OmegaConf.select(document, path, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(error.full_key or path, _MISSING) from error
    except OmegaConfBaseException as error:
        problem = f"does not resolve: {_said(error)}; an interpolation must name a key of the same file"
        raise ConfigError(error.full_key or path, problem) from error


# What PyYAML lets through for `!!float x`, `!!int ""`, `!!bool x`, `!!timestamp x`
_VALUE_ERRORS = (ValueError, LookupError, AttributeError)


class _LocatingLoader(yaml.SafeLoader):
    """Raises ConstructorError, which has a line, where a value cannot be constructed or holds itself."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=True)
        except _VALUE_ERRORS as error:
            problem = f"{node.value!r} is not a value of type {node.tag.rpartition(':')[2]}"
            raise ConstructorError(None, None, problem, node.start_mark) from error


def _located(path: Path | str, error: Exception) -> str:
    """`error` of loading the file, with the line that caused it."""
    try:
        yaml.load(Path(path).read_text(encoding="utf-8"), _LocatingLoader)
    except ConstructorError as found:
        return _marked(found)
    except RecursionError:
        pass
    return "is nested too deeply" if isinstance(error, RecursionError) else f"cannot be read: {error}"


def _marked(error: yaml.MarkedYAMLError) -> str:
    said = ", ".join(" ".join(text.split()) for text in (error.context, error.problem) if text)
    cure = next((f"; {cure}" for problem, cure in _CURES.items() if problem in said), "")
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {said}{cure}" if mark is not None else f"{said}{cure}"


def _said(error: OmegaConfBaseException) -> str:
    return str(error).splitlines()[0]
