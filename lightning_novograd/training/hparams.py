"""Hyper-parameters in checkpoints: plain data there, OmegaConf objects again for the `__init__` that had them."""

import inspect
from pathlib import PurePath
from typing import Any

from omegaconf import Container, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_novograd.errors import DataError

# which hyper-parameters were OmegaConf objects; "": all of them together were one
_MARK = "omegaconf_hyper_parameters"


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
    for owner in ("", "datamodule_"):
        hparams = checkpoint.get(f"{owner}hyper_parameters")
        if isinstance(hparams, Container):
            del checkpoint[f"{owner}hparams_type"]  # the class
        if hparams is not None:
            checkpoint[f"{owner}hyper_parameters"] = _plain(hparams)


def arguments_of_init(cls: type, where: Any, checkpoint: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`given` and the arguments that `cls` had as OmegaConf objects when `checkpoint`, the file `where`, was saved.

    Raises:
        DataError: what the checkpoint says of them is not so.

    """
    hparams, names = checkpoint.get("hyper_parameters", {}), checkpoint.get(_MARK, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}: {_MARK} must be a list of texts, found {repr(names)[:80]}")
    if names != [""]:
        if lost := [name for name in names if name not in hparams]:
            raise DataError(f"{where}: {_MARK} names {lost[0][:80]!r}, which is no hyper-parameter of it")
        return {**{name: _omegaconf(where, name, hparams[name]) for name in names}, **given}
    name = str(checkpoint.get("hparams_name"))
    if name in inspect.signature(cls).parameters:
        return {name: _omegaconf(where, name, {**hparams, **given}), **given}
    return {**{name: _omegaconf(where, name, value) for name, value in hparams.items()}, **given}


def _plain(value: Any) -> Any:
    if isinstance(value, Container):
        try:
            plain = OmegaConf.to_container(value, resolve=True, enum_to_str=True)
        except OmegaConfBaseException:  # an interpolation that means something elsewhere only
            plain = OmegaConf.to_container(value, resolve=False, enum_to_str=True)
        return _without_paths(plain)
    if type(value) is dict:
        return {key: _plain(item) for key, item in value.items()}
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return str(value) if isinstance(value, PurePath) else value


def _omegaconf(where: Any, name: str, value: Any) -> Any:
    if not isinstance(value, dict | list):
        return value
    try:
        return OmegaConf.create(value, flags={"allow_objects": True})
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{where}: hyper-parameter {name!r} is not for OmegaConf: {reason[:200]}") from error
