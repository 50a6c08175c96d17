"""What a checkpoint may not do when a module is loaded from it, have code of its choice run, and what it must have."""

import re
import sys
import types
import typing
import warnings
from argparse import ArgumentError
from collections.abc import Mapping
from functools import cache
from typing import Any

from packaging.version import InvalidVersion, Version

from lightning_novograd.config.arguments import arguments_of, expected
from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.training.checkpoint.code import is_plain, named_code

OLDEST_SAFE_LIGHTNING = Version("2.6.6")
_MALICIOUS = (Version("2.6.2"), Version("2.6.3"))

# Where Lightning finds hyper-parameters in a checkpoint, those of old versions included
_HYPER_PARAMETERS = ("hparams", "module_arguments", "hyper_parameters")
# LightningCLI's, which builds every object that a `class_path` among the hyper-parameters names
_INSTANTIATORS = ("lightning.pytorch.cli.instantiate_module", "pytorch_lightning.cli.instantiate_module")
_VERSION = "pytorch-lightning_version"
_SHOWN = 200  # characters of a value or a message


@cache
def warn_of_unsafe_lightning(package: str) -> None:
    """Warn, once, of a version of Lightning that runs code of checkpoints, or that was published with malicious code.

    Args:
        package: `"lightning.pytorch"` or `"pytorch_lightning"`.

    """
    name = package.partition(".")[0]
    version = Version(getattr(sys.modules.get(name), "__version__", "0"))
    if version in _MALICIOUS:
        danger = "was published with malicious code (GHSA-w37p-236h-pfx3): take this machine's credentials for stolen"
    elif version < OLDEST_SAFE_LIGHTNING:
        danger = "runs code that a checkpoint names, weights_only=True or not (CVE-2026-58659)"
    else:
        return
    warnings.warn(f"{name} {version} {danger}; install {name}>={OLDEST_SAFE_LIGHTNING}", UserWarning, stacklevel=4)


def refuse_code(cls: type, where: Any, checkpoint: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise for hyper-parameters that name code: an instantiator, or with LightningCLI's, classes for it to build.

    Lightning 2.6.6 looks at the instantiator and at the module's own class, and not at what is built for its arguments.

    Args:
        cls: the module's class.
        where: the file, for errors.
        checkpoint: as Lightning saved it.
        given: arguments that the caller gives, whatever the checkpoint has.

    Raises:
        DataError: they do.

    """
    hparams = {key: value for key, value in _hyper_parameters(where, checkpoint).items() if key not in given}
    instantiator, class_path = hparams.pop("_instantiator", None), hparams.pop("_class_path", None)
    if instantiator is None:
        return
    if instantiator not in _INSTANTIATORS:
        raise DataError(f"{where}: the instantiator {instantiator!r} would be called; allowed: {_INSTANTIATORS[0]}")
    if class_path is not None and not _is_imported_subclass(class_path, cls):
        known = f"a subclass of {cls.__name__} that is imported already"
        raise DataError(f"{where}: the class {class_path!r} would be imported and called; allowed: {known}")
    try:
        found = named_code(cls, cls if class_path is None else _imported(class_path), hparams)
    except RecursionError as error:
        raise DataError(f"{where}: hyper-parameters are nested too deeply") from error
    if found is not None:
        name, code = found
        problem = "names code" if not isinstance(code, str) or is_plain(code) else "may be read as YAML that names code"
        way_out = f"give {name}=... to load_from_checkpoint, or weights_only=False if you trust the file"
        raise DataError(f"{where}: hyper-parameter {name!r} {problem}, {str(code)[:80]!r}; {way_out}")


def check_whole(where: Any, checkpoint: Mapping[str, Any]) -> None:
    """Raise where Lightning, which takes it for granted, would not find what every checkpoint of its own has.

    Args:
        where: the file, for errors.
        checkpoint: as it was read.

    Raises:
        DataError: something is missing, or of another type.

    """
    for key in ("state_dict", _VERSION):
        if key not in checkpoint:
            raise DataError(f"{where} is no checkpoint of Lightning: it has no {key}")
    weights, version = checkpoint["state_dict"], checkpoint[_VERSION]
    if not isinstance(weights, Mapping):
        raise DataError(f"{where}: state_dict must be a dict, found {type(weights).__name__}")
    try:
        Version(version)
    except (InvalidVersion, TypeError) as error:
        shown = repr(version)[:_SHOWN]
        raise DataError(f"{where}: {_VERSION} {shown} is not a version of Lightning") from error


def misfit(cls: type, where: Any, checkpoint: Mapping[str, Any], error: ArgumentError) -> DataError:
    """What is wrong with a hyper-parameter that LightningCLI's parser refused, in one line; its own text has many.

    Args:
        cls: the module's class.
        where: the file.
        checkpoint: as Lightning saved it.
        error: the parser's.

    """
    hparams, text = _hyper_parameters(where, checkpoint), str(error)
    if (named := re.search(r'"module\.(?:init_args\.|dict_kwargs\.)?(\w+)', text)) is None:
        return DataError(f"{where}: LightningCLI's hyper-parameters do not fit: {' '.join(text.split())[:_SHOWN]}")
    name, class_path = named[1], hparams.get("_class_path")
    # what each member of a union takes
    kinds = re.findall(r"(?:Expected|expects) (?:an? )?(.+?)(?:\. Got|, but|: |$)", text, re.M)
    kinds = [re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", kind) for kind in dict.fromkeys(kinds)]
    problem = f"expected {' or '.join(kinds) or 'another value'}, got {hparams.get(name)!r}"
    argument = arguments_of(cls if class_path is None else _imported(class_path), ()).get(name)
    if argument is not None and all(map(expected, _members(argument.hint))):
        try:
            argument.convert(hparams.get(name), name)
        except ConfigError as ours:
            problem = ours.problem
    return DataError(f"{where}: hyper-parameter {name!r}: {problem[:_SHOWN]}; give {name}=... to load_from_checkpoint")


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or else the type itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _hyper_parameters(where: Any, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """All of them, as Lightning gathers them."""
    hparams: dict[str, Any] = {}
    for key in _HYPER_PARAMETERS:
        saved = checkpoint.get(key, {})
        if not isinstance(saved, Mapping):  # Lightning would make a dict of pairs, too
            raise DataError(f"{where}: {key} must be a dict, found {type(saved).__name__}")
        hparams |= saved
    return hparams


def _imported(class_path: Any) -> Any:
    module, _, name = str(class_path).rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def _is_imported_subclass(class_path: Any, cls: type) -> bool:
    found = _imported(class_path)
    return isinstance(found, type) and issubclass(found, cls)
