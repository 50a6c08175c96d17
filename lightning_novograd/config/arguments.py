"""What a registered class accepts: its constructor arguments, read from its signature and docstring."""

import collections.abc
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, Union

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_novograd.errors import ConfigError
from lightning_novograd.registry import Entry

REQUIRED = inspect.Parameter.empty

# torch writes annotations as strings whose names it imports for type checkers only
_ANNOTATION_NAMES = {
    **{name: getattr(typing, name) for name in typing.__all__},
    **{name: getattr(collections.abc, name) for name in collections.abc.__all__},
    "LRScheduler": LRScheduler,
    "Optimizer": Optimizer,
    "Tensor": torch.Tensor,
    "torch": torch,
}
# Docstrings have formulas in TeX; tables and terminals do not
_SYMBOLS = {
    **{rf"\{name}": chr(0x3B1 + index) for index, name in enumerate(("alpha", "beta", "gamma", "delta", "epsilon"))},
    **{r"\lambda": "λ", r"\mu": "μ", r"\tau": "τ"},
    **{r"\ge": "≥", r"\le": "≤", r"\in": "∈", r"\|": "‖", r"\min": "min", r"\max": "max"},
}
_NUMBER_AS_TEXT = (
    "YAML reads 1e-3 as text, 1.0e-3 as a number; what is quoted is text, and so is an environment variable: for a "
    "number write ${oc.decode:${oc.env:NAME}}"
)
_UNIONS = (Union, types.UnionType)
_SEQUENCES = (list, collections.abc.Iterable, collections.abc.Sequence)


# Beyond it a float can overflow on the way, and no count of steps or epochs goes there
LARGEST_INTEGER = 2**63 - 1


# Whether texts may stand for numbers, as they do on a command line
_OF_COMMAND_LINE: ContextVar[bool] = ContextVar("of_command_line", default=False)
# As YAML has them
_WORDS = {
    form: value
    for word, value in {"true": True, "false": False, "null": None}.items()
    for form in (word, word.capitalize(), word.upper())
}


@contextmanager
def of_command_line() -> Iterator[None]:
    """Inside, a text is a number, true, false or null where one is wanted: jsonargparse leaves them in a `dict`."""
    token = _OF_COMMAND_LINE.set(True)
    try:
        yield
    finally:
        _OF_COMMAND_LINE.reset(token)


class _Mismatch(Exception):
    """A value that is not of the wanted type."""


@dataclass(frozen=True)
class Argument:
    """One constructor argument.

    Args:
        name: keyword.
        hint: type annotation; inferred from the default where the class has none, or one that cannot be resolved.
        default: `REQUIRED` if there is none.
        help: its line in the class's docstring.
        is_guessed: whether it has an annotation that cannot be resolved.

    """

    name: str
    hint: Any
    default: Any = REQUIRED
    help: str = ""
    is_guessed: bool = False

    @property
    def required(self) -> bool:
        """Whether a value must be given."""
        return self.default is REQUIRED

    @property
    def from_data(self) -> bool:
        """Whether any value of a config file fits (a function does not come from a file)."""
        return bool(expected(self.hint))

    @property
    def wanted(self) -> str:
        """What a value should be: `"expected a number: learning rate"`."""
        return f"expected {expected(self.hint) or self.hint}" + (f": {self.help}" if self.help else "")

    @property
    def takes_schedulers(self) -> bool:
        """Whether the argument is a list of schedulers (`SequentialLR`, `ChainedScheduler`)."""
        return typing.get_origin(self.hint) in _SEQUENCES and typing.get_args(self.hint) == (LRScheduler,)

    @property
    def per_group(self) -> bool:
        """Whether a list stands for one value per param group (`max_lr: [0.1, 0.2]`), and a number for all of them."""
        members = typing.get_args(self.hint) if typing.get_origin(self.hint) in _UNIONS else ()
        return any({number, listed} <= {*members} for number, listed in ((int, list[int]), (float, list[float])))

    def convert(self, value: Any, path: str) -> Any:
        """`value`, plain data from a config, as the class wants it: numbers widened, lists made tuples.

        Raises:
            ConfigError: the value has another type.

        """
        try:
            return _convert(value, self.hint)
        except _Mismatch:
            wanted = expected(self.hint)
            if not wanted:
                problem = (
                    f"takes a Python object ({self.hint}), which a config cannot hold; register a class that builds it"
                )
            else:
                problem = f"expected {wanted}, got {_shown(value)}"
            raise ConfigError(path, problem) from None


def entry_arguments(entry: Entry) -> dict[str, Argument]:
    """What a config may set of a registered class, in the order of its signature."""
    # the parameters and the optimizer are not for a config to give
    return arguments_of(entry.cls, ("params",) if entry.kind == "optimizer" else ("optimizer",))


def arguments_of(cls: type, skip: tuple[str, ...]) -> dict[str, Argument]:
    """The constructor arguments of `cls` in order, without `skip`; `**kwargs` stand for those of the base class."""
    found: dict[str, Argument] = {}
    helps = _argument_help(cls)
    for owner in cls.__mro__:
        if "__init__" not in vars(owner):
            continue
        constructor = vars(owner)["__init__"]
        parameters = list(inspect.signature(constructor).parameters.values())[1:]
        for p in parameters:
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) or p.name in skip or p.name in found:
                continue
            hint, is_guessed = _hint(constructor, p)
            found[p.name] = Argument(p.name, hint, p.default, helps.get(p.name, ""), is_guessed)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def expected(hint: Any) -> str:
    """`hint` in words, as far as a config file can hold it: `"a number or null"`; empty if it cannot."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        return " or ".join(dict.fromkeys(words for words in map(expected, args) if words))
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin is tuple and Ellipsis not in args:
        inner = list(dict.fromkeys(_noun(a) for a in args))
        return f"a list of {len(args)} {inner[0]}s" if len(inner) == 1 else f"a list ({', '.join(inner)})"
    if origin in _SEQUENCES or origin is tuple:
        return f"a list of {_plural(_noun(args[0]))}" if _noun(args[0]) else ""
    words: dict[Any, str] = {
        Any: "a value",
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "a text",
        dict: "a mapping",
        type(None): "null",
        LRScheduler: "a scheduler",
    }
    return words.get(hint, "")


def _noun(hint: Any) -> str:
    return expected(hint).removeprefix("a ").removeprefix("an ")


def _plural(noun: str) -> str:
    return f"lists{noun.removeprefix('list')}" if noun.startswith("list ") else f"{noun}s"


def _convert(value: Any, hint: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in _UNIONS:
        for member in args:
            try:
                return _convert(value, member)
            except _Mismatch:
                continue
        raise _Mismatch
    if origin is Literal:
        for choice in args:
            if type(value) is type(choice) and value == choice:
                return value
        raise _Mismatch
    if origin is tuple and Ellipsis not in args:
        if not isinstance(value, list | tuple) or len(value) != len(args):
            raise _Mismatch
        return tuple(_convert(v, a) for v, a in zip(value, args, strict=True))
    if origin in _SEQUENCES or origin is tuple:
        if not isinstance(value, list | tuple):
            raise _Mismatch
        converted = [_convert(v, args[0]) for v in value]
        return tuple(converted) if origin is tuple else converted
    if isinstance(value, str) and hint in (bool, int, float, type(None)) and _OF_COMMAND_LINE.get():
        value = _read(value)
    if hint is int and isinstance(value, float) and value.is_integer() and abs(value) <= LARGEST_INTEGER:
        return int(value)  # YAML has no other way to write 1e5
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (bool, int, float, str, dict, type(None)) and type(value) is hint:
        if hint is float and not math.isfinite(value):
            raise _Mismatch
        return value
    raise _Mismatch


def _read(text: str) -> Any:
    for read in (_WORDS.__getitem__, int, float):
        with suppress(KeyError, ValueError):
            return read(text)
    return text


def _hint(constructor: Callable[..., Any], parameter: inspect.Parameter) -> tuple[Any, bool]:
    """An argument's type, and whether its annotation left that to be guessed."""
    if parameter.annotation is inspect.Parameter.empty:
        return _hint_of(parameter.default), False
    alone = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        namespace = inspect.unwrap(constructor).__globals__
        return typing.get_type_hints(alone, namespace, _ANNOTATION_NAMES)[parameter.name], False
    except Exception:
        # an annotation may be any expression, of names that only type checkers import
        return _hint_of(parameter.default), True


def _hint_of(default: Any) -> Any:
    """What an argument takes whose annotation says nothing, judged by its default."""
    if default is REQUIRED or default is None:
        return Any
    if isinstance(default, tuple):
        return tuple.__class_getitem__(tuple(_hint_of(v) for v in default))
    return int | float if type(default) is int else type(default)


def _argument_help(cls: type) -> dict[str, str]:
    """First sentence of each line `name (type): text` of the docstring's Args section."""
    doc = inspect.getdoc(cls) or ""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", doc, re.S | re.M)
    if section is None:
        return {}
    helps = {}
    for match in re.finditer(r"^ {4}(\w+)(?: \(.*?\))?: (.+(?:\n {5,}.+)*)", section[1], re.M):
        text = " ".join(match[2].split())
        text = re.sub(r":\w+:`~?([^`]*)`", r"\1", text)
        text = re.sub(r"\\(?:[a-z]+|\|)", lambda symbol: _SYMBOLS.get(symbol[0], symbol[0]), text)
        helps[match[1]] = re.split(r"(?<=\w)\. |\s*\(default", text)[0].rstrip(". ")
    return helps


def _shown(value: Any) -> str:
    kinds: dict[type, str] = {dict: "a mapping", list: "a list", tuple: "a list", type(None): "null"}
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return f"the text {value!r}"
        return f"the text {value!r} ({_NUMBER_AS_TEXT})"
    kind = kinds.get(type(value), "")
    return f"{kind} {value!r}" if kind and value is not None else (kind or repr(value))
