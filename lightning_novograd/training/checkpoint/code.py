"""Which hyper-parameters LightningCLI's instantiator might import or call something for, and which it takes as data.

It parses them as jsonargparse does a config: a text is a name to import where an argument may be a function or a class,
and YAML or JSON, in which a `class_path` may be hidden, where it may be anything. So a text is let through where its
argument takes data alone, and elsewhere only what is no more than a text to YAML and JSON.
"""

import dataclasses
import inspect
import os
import re
import types
import typing
from collections import OrderedDict
from collections.abc import (
    Collection,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    MutableSequence,
    Sequence,
    Set,
)
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

# an argument of which nothing is known
_UNKNOWN = object()
# types for which a text is a value, whatever is in it
_DATA = (bool, int, float, str, type(None), Path, PurePath, os.PathLike)
_MAPPINGS = {dict, OrderedDict, Mapping, MutableMapping}
_CONTAINERS = _MAPPINGS | {list, tuple, set, frozenset, Sequence, MutableSequence, Iterable, Collection, Set}
# a plain scalar on one line: no indicator comes first, no document begins or ends, and no colon makes it a key
_PLAIN = re.compile(r"""(?!\.\.\.)(?:-(?![- ]|$)|[^-\s?:,\[\]{}#&!|>'"%@`])(?:[^:]|:(?! |$))*""")


def is_plain(text: str) -> bool:
    """Whether YAML and JSON read a text as no more than that, a number, a date or nothing.

    Example:
        >>> is_plain("encoder.*"), is_plain("'"), is_plain("s3://bucket/a"), is_plain("a: b"), is_plain("[a]")
        (True, True, True, False, False)

    """
    if len(text) < 2:
        return True
    return text.isprintable() and "${" not in text and _PLAIN.fullmatch(text) is not None


def named_code(cls: type, built: type, hparams: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The first hyper-parameter for which something might be imported or called, and what in it says so.

    Args:
        cls: the class that Lightning loads.
        built: the class that LightningCLI would build; differs from `cls` for a `_class_path`.
        hparams: by name.

    """
    hints: dict[str, Any] | None = None
    for name, value in hparams.items():
        found = next(_class_paths({name: value}), None)
        if found is None and _is_handed_on(cls, name):
            hints = _hints(built) if hints is None else hints
            found = next(_code_of(str(name), value, hints), None)
        if found is not None:
            return str(name), found
    return None


def _is_handed_on(cls: type, name: Any) -> bool:
    """Whether Lightning hands a hyper-parameter of this name on; others it drops."""
    parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]  # of a class, not of an instance
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _hints(cls: type) -> dict[str, Any]:
    """The types that jsonargparse goes by, by name; `config.width` is the field of a dataclass."""
    from jsonargparse import ArgumentParser  # LightningCLI's, which imports it too

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "module", fail_untyped=False)  # as LightningCLI does
    hints = {action.dest: getattr(action, "_typehint", _UNKNOWN) for action in parser._actions}
    return {dest.removeprefix("module."): hint for dest, hint in hints.items() if hint is not _UNKNOWN}


def _class_paths(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if "class_path" in str(key):  # or a dotted key that ends in it
                yield item
            else:
                yield from _class_paths(item)
    else:
        for item in _items(value):
            yield from _class_paths(item)


def _code_of(name: str, value: Any, hints: Mapping[str, Any]) -> Iterator[Any]:
    if name not in hints and isinstance(value, Mapping) and any(hint.startswith(f"{name}.") for hint in hints):
        for key, item in value.items():
            yield from _code_of(f"{name}.{key}", item, hints)
    else:
        yield from _code(value, hints.get(name, _UNKNOWN))


def _code(value: Any, hint: Any) -> Iterator[str]:
    """The texts in `value` that are more than data for an argument of the type `hint`."""
    origin, members = typing.get_origin(hint), tuple(m for m in typing.get_args(hint) if m is not ...)
    if origin is typing.Annotated:
        yield from _code(value, members[0])
    elif origin in (typing.Union, types.UnionType):  # each is tried
        for member in members:
            yield from _code(value, member)
    elif isinstance(value, str):
        yield from _code_of_text(value, hint, members)
    else:
        keys = list(value) if isinstance(value, Mapping) else []
        for key in keys:
            yield from _code(key, Any)
        fields, kinds = _fields(hint), _inside(hint, members)
        for index, item in enumerate(value.values() if isinstance(value, Mapping) else _items(value)):
            of_item = kinds if fields is None else (fields.get(keys[index], _UNKNOWN) if keys else _UNKNOWN,)
            for kind in of_item:
                yield from _code(item, kind)


def _code_of_text(text: str, hint: Any, members: tuple[Any, ...]) -> Iterator[str]:
    if _takes_data(hint):
        return
    if not (_takes_anything(hint) or _kind(hint) in _CONTAINERS) or not is_plain(text):
        yield text
    else:
        for member in members:
            yield from _code(text, member)


def _inside(hint: Any, members: tuple[Any, ...]) -> tuple[Any, ...]:
    """The types that an item of a container may be taken for; none where jsonargparse takes no container."""
    if _takes_data(hint):
        return ()
    if _kind(hint) in _CONTAINERS:
        return (members[-1:] if _kind(hint) in _MAPPINGS else members) or (Any,)
    return (Any,) if _takes_anything(hint) else (_UNKNOWN,)


def _kind(hint: Any) -> Any:
    return typing.get_origin(hint) or hint


def _takes_anything(hint: Any) -> bool:
    return hint is Any or hint is object or repr(hint) == "Untyped"  # jsonargparse's own, for no annotation


def _takes_data(hint: Any) -> bool:
    is_enum = isinstance(hint, type) and issubclass(hint, Enum)
    return hint in _DATA or _kind(hint) is typing.Literal or is_enum


def _fields(hint: Any) -> dict[str, Any] | None:
    """The types of a dataclass's fields; None for anything else."""
    if not (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
        return None
    try:
        hints = typing.get_type_hints(hint)
    except Exception:  # an annotation may be any expression, of names that only type checkers import
        return {}
    return {field.name: hints.get(field.name, _UNKNOWN) for field in dataclasses.fields(hint)}


def _items(value: Any) -> Iterator[Any]:
    if isinstance(value, Sequence | Set) and not isinstance(value, str | bytes | bytearray):
        yield from value
