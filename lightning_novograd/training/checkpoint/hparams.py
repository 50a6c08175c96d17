"""Hyper-parameters in checkpoints: plain data there, OmegaConf objects again for the `__init__` that had them."""

import inspect
import re
from pathlib import PurePath
from typing import Any

from omegaconf import Container, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_novograd.errors import DataError

# which hyper-parameters were OmegaConf objects; "": all of them together were one
_MARK = "omegaconf_hyper_parameters"
# which of them hold interpolations; in the others a "${" is only a text
_UNRESOLVED = "omegaconf_interpolations"
# arguments of Lightning's functions that load a checkpoint: no names for hyper-parameters to be handed on by
_LIGHTNINGS = {"self", "cls", "checkpoint", "checkpoint_path", "map_location", "hparams_file", "strict", "weights_only"}
# "${", with the backslashes before it: in pairs they stand for themselves, and one more makes it a text
_DOLLAR = re.compile(r"(\\*)\$\{")
_REFERENCE = re.compile(r"\$\{[^${}:\"'\\]+\}")


def store_plain(checkpoint: dict[str, Any], only: str | None = None) -> None:
    """Make the hyper-parameters of the module and of the data module plain data: `weights_only=True` loads no other.

    Args:
        checkpoint: as Lightning saves it, changed in place.
        only: the one hyper-parameter that is made plain, if there is more than one.

    """
    hparams = checkpoint.get("hyper_parameters", {})
    if only is not None:
        if isinstance(hparams, dict) and only in hparams:
            hparams[only] = _plain(hparams[only])
        return
    whole = isinstance(hparams, Container)
    marked = [""] if whole else [name for name, value in hparams.items() if isinstance(value, Container)]
    if marked:
        checkpoint[_MARK] = marked
        checkpoint[_UNRESOLVED] = [name for name in marked if _resolved(hparams[name] if name else hparams) is None]
    for owner in ("", "datamodule_"):
        hparams = checkpoint.get(f"{owner}hyper_parameters")
        if isinstance(hparams, Container):
            del checkpoint[f"{owner}hparams_type"]  # the class
        if hparams is not None:
            checkpoint[f"{owner}hyper_parameters"] = _plain(hparams)


def arguments_of_init(
    cls: type, where: Any, checkpoint: dict[str, Any], given: dict[str, Any], trusted: bool
) -> dict[str, Any]:
    """`given` and the arguments that `cls` had as OmegaConf objects when `checkpoint`, the file `where`, was saved.

    Args:
        cls: the module's class.
        where: the file, for errors.
        checkpoint: as it was read.
        given: arguments that the caller gives.
        trusted: whether interpolations may be more than references to other keys, `${oc.env:HOME}`.

    Raises:
        DataError: what the checkpoint says of them is not so, or they hold such interpolations.

    """
    hparams, names = checkpoint.get("hyper_parameters", {}), _names(where, checkpoint, _MARK, [])
    unresolved = _names(where, checkpoint, _UNRESOLVED, names)  # checkpoints of old versions do not say

    def omegaconf(name: str, mark: str, value: Any, more: dict[str, Any] | None = None) -> Any:
        if not isinstance(value, dict | list):
            return value
        try:
            content: Any = value if mark in unresolved else _escaped(value)
            created = _create(where, name, {**content, **more} if more else content)
            if mark in unresolved and not trusted:
                _check_references(where, name, value)
        except RecursionError as error:
            raise DataError(f"{where}: hyper-parameter {name!r} is nested too deeply") from error
        return created

    argument = str(checkpoint.get("hparams_name"))
    if names != [""]:
        if lost := [name for name in names if name not in hparams]:
            raise DataError(f"{where}: {_MARK} names {lost[0][:80]!r}, which is no hyper-parameter of it")
        found = {name: omegaconf(name, name, hparams[name]) for name in names}
    elif argument in inspect.signature(cls).parameters:
        found = {argument: omegaconf(argument, "", hparams, given)}
    else:
        found = {name: omegaconf(name, "", value) for name, value in hparams.items() if isinstance(name, str)}
    return {**{name: value for name, value in found.items() if name not in _LIGHTNINGS}, **given}


def plain_references(where: Any, hparams: Any) -> Any:
    """Hyper-parameters of a file as plain data, references to other keys resolved.

    Raises:
        DataError: they hold interpolations that are more than that.

    """
    if not isinstance(hparams, Container):
        return hparams
    plain = OmegaConf.to_container(hparams, resolve=False)
    if not isinstance(plain, dict):
        return plain
    for name, value in plain.items():
        _check_references(where, str(name), value)
    return _plain(hparams)


def _names(where: Any, checkpoint: dict[str, Any], key: str, default: list[str]) -> list[str]:
    names = checkpoint.get(key, default)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}: {key} must be a list of texts, found {repr(names)[:80]}")
    return names


def _plain(value: Any) -> Any:
    if isinstance(value, Container):
        plain = _resolved(value)
        if plain is None:  # an interpolation that means something elsewhere only
            plain = OmegaConf.to_container(value, resolve=False, enum_to_str=True)
        return _without_paths(plain)
    if type(value) is dict:
        return {key: _plain(item) for key, item in value.items()}
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value


def _resolved(value: Container) -> Any:
    try:
        return OmegaConf.to_container(value, resolve=True, enum_to_str=True)
    except OmegaConfBaseException:
        return None


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return str(value) if isinstance(value, PurePath) else value


def _create(where: Any, name: str, value: Any) -> Any:
    try:
        return OmegaConf.create(value, flags={"allow_objects": True})
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{where}: hyper-parameter {name!r} is not for OmegaConf: {reason[:200]}") from error


def _escaped(value: Any) -> Any:
    """`value` so that OmegaConf takes every "${" in it for a text."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return _DOLLAR.sub(r"\1\1\\${", value) if isinstance(value, str) else value


def _check_references(where: Any, name: str, value: Any) -> None:
    """Raise for an interpolation that calls a resolver: it may read the environment, or run what is registered."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_references(where, name, item)
    elif isinstance(value, str):
        left, before = _DOLLAR.sub(lambda found: found[0] if len(found[1]) % 2 == 0 else "", value), None
        while left != before:  # from the inside out, ${a.${b}}
            left, before = _REFERENCE.sub("x", left), left
        if "${" in left:
            known = "references to other keys, '${key}'; weights_only=False if you trust the file"
            raise DataError(f"{where}: hyper-parameter {name!r} has the interpolation {value[:80]!r}; allowed: {known}")
