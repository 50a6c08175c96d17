"""Configs of any make -> plain dicts, lists, numbers, texts. Configs are data: nothing in them is ever called."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import Container, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_novograd.errors import ConfigError

# Hydra's instantiate, and NeMo's older `cls`, run whatever import path they are given
_CODE_KEYS = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_", "cls")
_REGISTRY = "classes are chosen by `name` from the registry (register_optimizer, register_scheduler)"
_MAX_DEPTH = 20


def to_plain(value: Any, path: str) -> Any:
    """`value` with interpolations resolved, as dict, list, str, int, float, bool and None only.

    Raises:
        ConfigError: a `_target_`, a Python object, a key that is no text, NaN or infinity, an interpolation that does
            not resolve, a missing value (`???`).

    """
    if isinstance(value, Container):
        try:
            value = OmegaConf.to_container(value, resolve=True, throw_on_missing=True, enum_to_str=True)
        except OmegaConfBaseException as error:
            where = f" at {error.full_key}" if error.full_key else ""
            raise ConfigError(path, f"does not resolve{where}: {str(error).splitlines()[0]}") from error
    return _plain(value, path, _MAX_DEPTH)


def _plain(value: Any, path: str, depth: int) -> Any:
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
            if key in _CODE_KEYS:
                raise ConfigError(f"{path}.{key}", f"{value[key]!r} is refused: a config cannot name code; {_REGISTRY}")
        return {str(key): _plain(item, f"{path}.{key}", depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{index}]", depth - 1) for index, item in enumerate(value)]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(path, f"{value} is not a finite number")
        return float(value)
    if isinstance(value, str):
        if value == "???":
            raise ConfigError(path, "is '???', a mandatory value that nobody has set")
        if "${" in value:
            raise ConfigError(path, f"the interpolation {value!r} is unresolved; load the file with OmegaConf or Hydra")
        return str(value)
    raise ConfigError(path, f"{value!r} is a Python object ({type(value).__name__}), not data; {_REGISTRY}")


def load_yaml(path: Path | str) -> Any:
    """The YAML file at `path` as an OmegaConf container.

    Raises:
        ConfigError: no such file, not YAML, or tags that would build Python objects.

    """
    try:
        return OmegaConf.load(path)
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}") from error
    except yaml.constructor.ConstructorError as error:
        raise ConfigError(str(path), f"{error.problem}{error.problem_mark}; tags are refused, {_REGISTRY}") from error
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError(str(path), f"is not YAML: {' '.join(str(error).split())}") from error
