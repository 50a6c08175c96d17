"""Names in configs -> classes. Every class registers itself where it stands; installed plugins add theirs.

What is built in is found by importing the modules of `_BUILT_IN`: an optimizer or a schedule is one file in there.
"""

import importlib
import importlib.metadata
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import LRScheduler

from lightning_novograd.errors import ConfigError, choices
from lightning_novograd.ranges import Range

Kind = Literal["optimizer", "scheduler"]
Interval = Literal["step", "epoch"]

# The packages whose modules register what is built in
_BUILT_IN = ("lightning_novograd.optim", "lightning_novograd.lr_scheduler")
# Keys of a scheduler's state_dict that are its place, not a setting, whatever its arguments are called
_PLACE = {"base_lrs", "last_epoch", "_schedulers"}
# What the classes of other packages must be
_BASES: dict[Kind, type] = {"optimizer": torch.optim.Optimizer, "scheduler": LRScheduler}


@dataclass(frozen=True, eq=False)
class Entry:
    """A registered class, and what must be known of it beside its signature.

    Args:
        name: what configs call it; looked up without regard to case.
        kind: `"optimizer"` or `"scheduler"`.
        cls: the class.
        aliases: further names.
        ranges: by argument, where the class itself would fail later or never.
        check: raises a ConfigError, with the argument's name as `path`, for arguments that do not go together.
        needs: by argument, the one without which it has no effect.
        interval: schedulers: how often Lightning steps it unless the config says so.
        length: schedulers: the argument that takes the length of the run.
        length_parts: schedulers: arguments that say the length together, in place of `length`.
        settings: schedulers: keys of its state_dict that hold what it was built with; None: named after arguments.
        watches_metric: schedulers: whether it is stepped with a metric.

    """

    name: str
    kind: Kind
    cls: type
    aliases: tuple[str, ...] = ()
    ranges: Mapping[str, Range] = field(default_factory=dict)
    check: Callable[[Mapping[str, Any]], None] | None = None
    needs: Mapping[str, str] = field(default_factory=dict)
    interval: Interval = "step"
    length: str | None = None
    length_parts: tuple[str, ...] = ()
    settings: tuple[str, ...] | None = None
    watches_metric: bool = False
    _help: str = ""
    _paper: str = ""

    @property
    def help(self) -> str:
        """One line."""
        return self._help or (inspect.getdoc(self.cls) or "").strip().split("\n")[0].rstrip(".")

    @property
    def paper(self) -> str:
        """Link to the paper, or empty."""
        links = re.findall(r"https?://[^\s>)\]`]+", inspect.getdoc(self.cls) or "")
        papers = (link for link in links if re.search(r"arxiv|openreview|jmlr|pdf|mlr\.press|springer|aaai", link))
        return self._paper or next(papers, "").rstrip(".,")

    def check_arguments(self, args: Mapping[str, Any]) -> None:
        """Raise for arguments with which the class would fail in mid-run, or do nonsense without a word.

        Raises:
            ConfigError: `path` is the argument at fault.

        """
        for name, allowed in self.ranges.items():
            allowed.check(name, args.get(name))
        if self.check is not None:
            self.check(args)


class _Registry:
    """The classes of one kind by name, those of installed plugins included."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def add(self, entry: Entry) -> None:
        for name in (entry.name, *entry.aliases):
            taken = self._entries.get(name.casefold())
            if taken is not None:
                raise ConfigError("", f"{self.kind} {name!r} is already registered ({taken.cls})")
        for name in (entry.name, *entry.aliases):
            self._entries[name.casefold()] = entry

    def remove(self, name: str) -> None:
        _import_built_in()
        entry = self._entries[name.casefold()]
        for known in {name.casefold() for name in (entry.name, *entry.aliases)}:
            del self._entries[known]

    def forget(self, module: str) -> None:
        """Forget the classes of a module that could not be imported to its end."""
        self._entries = {name: entry for name, entry in self._entries.items() if entry.cls.__module__ != module}

    def names(self) -> list[str]:
        _import_built_in()
        own = {entry.name for entry in self._entries.values()}
        return sorted(own | {point.name for point in _entry_points(self.kind)}, key=str.casefold)

    def __iter__(self) -> Iterator[Entry]:
        return iter({id(entry): entry for entry in self._entries.values()}.values())

    def entry_of(self, cls: type) -> Entry | None:
        """The first entry of the very class `cls`, whatever its name."""
        return next((entry for entry in self if entry.cls is cls), None)

    def new_entry(
        self, name: str, cls: type, *, interval: Interval = "step", length: str | None = "max_steps", **facts: Any
    ) -> Entry:
        """An entry of `cls`; facts that are not given are those known of the class, or of the nearest one above it."""
        _check_registrable(self.kind, name, cls, facts.get("aliases", ()))
        known = self._known_of(cls)
        takes_length = self.kind == "scheduler" and length is not None and _takes(cls, length)
        given = {"aliases": (), **{key: value for key, value in facts.items() if value is not None}}
        for fact in ("ranges", "needs"):
            given[fact] = {**getattr(known, fact), **given.get(fact, {})}
        return replace(known, **given, name=name, interval=interval, length=length if takes_length else None)

    def _known_of(self, cls: type) -> Entry:
        """What another entry says of a class, or else how the arguments of the nearest class above it are checked."""
        entries = (entry for base in cls.__mro__ if (entry := self.entry_of(base)) is not None)
        nearest = next(entries, None)
        if nearest is None:
            return Entry("", self.kind, cls)
        if nearest.cls is cls:
            return nearest
        ranges = {name: allowed.of_numbers() for name, allowed in nearest.ranges.items()}
        known = replace(Entry("", self.kind, cls), ranges=ranges, check=nearest.check, needs=nearest.needs)
        return replace(known, watches_metric=nearest.watches_metric)

    def get(self, name: str, path: str) -> Entry:
        _import_built_in()
        points = [point for point in _entry_points(self.kind) if point.name.casefold() == name.casefold()]
        entry = self._entries.get(name.casefold())
        offers = [_distribution(point) for point in points] + ([str(entry.cls)] if entry else [])
        if len(offers) > 1:
            raise ConfigError(path, f"{self.kind} {name!r} is offered more than once: by {', '.join(offers)}")
        if points:
            return self.new_entry(points[0].name, _load(points[0], self.kind, path))
        if entry is None:
            known = {*self.names(), *(alias for e in self._entries.values() for alias in e.aliases)}
            raise ConfigError(path, f"unknown {self.kind} {name!r}{self._not_fused(name) or choices(name, known)}")
        return entry

    def _not_fused(self, name: str) -> str:
        """A hint for `fused_adam` and its like: apex and NeMo have classes for what is an argument here."""
        plain = self._entries.get(re.sub("^fused_?", "", name.casefold()))
        if plain is None or not _takes(plain.cls, "fused"):
            return ""
        meant = "AdamW (as apex's is by default) or Adam" if plain.name == "Adam" else plain.name
        return f"; did you mean {meant}, with fused: true?"


@cache
def _entry_points(kind: Kind) -> tuple[importlib.metadata.EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=f"lightning_novograd.{kind}s"))


def _distribution(point: importlib.metadata.EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _load(point: importlib.metadata.EntryPoint, kind: Kind, path: str) -> type:
    try:
        loaded = point.load()
    except Exception as error:
        # a plugin may fail in any way while it is imported; the user must learn whose fault it is
        problem = f"{kind} {point.name!r} of the distribution {_distribution(point)!r} cannot be imported"
        raise ConfigError(path, f"{problem}: {type(error).__name__}: {error}") from error
    try:
        _check_registrable(kind, point.name, loaded)
    except ConfigError as error:
        raise ConfigError(path, f"of the distribution {_distribution(point)!r}: {error.problem}") from error
    return loaded


def _check_registrable(kind: Kind, name: str, cls: Any, aliases: Iterable[str] = ()) -> None:
    """Raise for names that no config can give, and for what is no optimizer or scheduler."""
    for given in (name, *aliases):
        if not isinstance(given, str) or not given or given != given.strip():
            raise ConfigError("", f"{kind} {given!r}: a name is a text, not empty, without spaces around it")
    base = _BASES[kind]
    if not isinstance(cls, type) or not issubclass(cls, base) or cls is base:
        problem = f"a class is registered, but {cls!r} is not a class that inherits from {base.__name__}"
        raise ConfigError("", f"{kind} {name!r}: {problem}")


def _takes(cls: type, argument: str) -> bool:
    """Whether the constructor has the argument, or hands on to one that has it."""
    for owner in cls.__mro__:
        if "__init__" in vars(owner):
            parameters = inspect.signature(vars(owner)["__init__"]).parameters
            if argument in parameters:
                return True
            if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                return False
    return False


@cache
def _import_built_in() -> None:
    """Let what is built in register itself, before the first look-up."""
    for package in _BUILT_IN:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            try:
                importlib.import_module(module.name)
            except BaseException:
                for registry in (OPTIMIZERS, SCHEDULERS):  # or the next look-up would find its classes taken
                    registry.forget(module.name)
                raise


OPTIMIZERS = _Registry("optimizer")
SCHEDULERS = _Registry("scheduler")


def register_optimizer(
    name: str,
    cls: type | None = None,
    *,
    aliases: Iterable[str] = (),
    ranges: Mapping[str, Range] | None = None,
    check: Callable[[Mapping[str, Any]], None] | None = None,
    needs: Mapping[str, str] | None = None,
    help: str = "",
    paper: str = "",
) -> Callable[[type], type] | type:
    """Make an optimizer known to configs under `name`; also a class decorator.

    Args:
        name: unique, compared without regard to case.
        cls: a `torch.optim.Optimizer` class; None: use as a decorator.
        aliases: further names.
        ranges: what numbers its arguments may have, where the class does not check them; a subclass of a registered
            class inherits them, and the check.
        check: raises a ConfigError, with the argument's name as `path`, for arguments that do not go together.
        needs: by argument, the one without which it has no effect: a block that gives the first alone is refused.
        help: one line for `describe`; the docstring's first line if empty.
        paper: link; the docstring's first link to a paper if empty.

    Raises:
        ConfigError: a name is taken or empty, or `cls` is no optimizer.

    Example:
        >>> @register_optimizer("my_sgd")
        ... class MySGD(torch.optim.SGD): ...
        >>> get_optimizer("My_SGD").cls is MySGD
        True
        >>> unregister_optimizer("my_sgd")

    """
    meta = {"ranges": ranges, "check": check, "needs": needs, "_help": help, "_paper": paper}
    return _register(OPTIMIZERS, name, cls, aliases=tuple(aliases), **meta)


def register_scheduler(
    name: str,
    cls: type | None = None,
    *,
    aliases: Iterable[str] = (),
    ranges: Mapping[str, Range] | None = None,
    check: Callable[[Mapping[str, Any]], None] | None = None,
    interval: Interval = "step",
    length: str | None = "max_steps",
    length_parts: Iterable[str] | None = None,
    settings: Iterable[str] | None = None,
    watches_metric: bool | None = None,
    help: str = "",
    paper: str = "",
) -> Callable[[type], type] | type:
    """Make an LR scheduler known to configs under `name`; also a class decorator.

    Args:
        name: unique, compared without regard to case.
        cls: a `torch.optim.lr_scheduler.LRScheduler` class; None: use as a decorator.
        aliases: further names.
        ranges: what numbers its arguments may have, where the class does not check them.
        check: raises a ConfigError, with the argument's name as `path`, for arguments that do not go together.
        interval: `"step"` or `"epoch"`: how often it is stepped unless the config says so.
        length: the argument that takes the number of optimizer steps of the run, if the class has it.
        length_parts: arguments that say the length together, in place of `length`.
        settings: keys of its state_dict that hold what it was built with, which a resumed run takes from the
            checkpoint and is told of; None: those named after its arguments. Our own policies take the config's.
        watches_metric: whether it is stepped with the monitored metric, as ReduceLROnPlateau is.
        help: one line for `describe`; the docstring's first line if empty.
        paper: link; the docstring's first link to a paper if empty.

    Raises:
        ConfigError: a name is taken or empty, or `cls` is no scheduler.

    """
    meta: dict[str, Any] = {
        "ranges": ranges,
        "check": check,
        "interval": interval,
        "length": length,
        "length_parts": None if length_parts is None else tuple(length_parts),
        "settings": None if settings is None else tuple(settings),
        "watches_metric": watches_metric,
        "_help": help,
        "_paper": paper,
    }
    return _register(SCHEDULERS, name, cls, aliases=tuple(aliases), **meta)


def _register(registry: _Registry, name: str, cls: type | None, **facts: Any) -> Callable[[type], type] | type:
    def add(cls: type) -> type:
        if not cls.__module__.startswith(tuple(f"{package}." for package in _BUILT_IN)):
            _import_built_in()  # so that it is the newcomer who is told that a name is taken
        registry.add(registry.new_entry(name, cls, **facts))
        return cls

    return add if cls is None else add(cls)


def unregister_optimizer(name: str) -> None:
    """Forget an optimizer, aliases included."""
    OPTIMIZERS.remove(name)


def unregister_scheduler(name: str) -> None:
    """Forget a scheduler, aliases included."""
    SCHEDULERS.remove(name)


def available_optimizers() -> list[str]:
    """Names that `optim.name` may have, those of installed plugins included."""
    return OPTIMIZERS.names()


def available_schedulers() -> list[str]:
    """Names that `optim.sched.name` may have, those of installed plugins included."""
    return SCHEDULERS.names()


def get_optimizer(name: str, path: str = "optim.name") -> Entry:
    """The optimizer registered as `name`.

    Raises:
        ConfigError: unknown, or its plugin does not import; `path` says where the name was found.

    """
    return OPTIMIZERS.get(name, path)


def scheduler_settings(cls: type | None = None) -> set[str]:
    """Keys of state dicts that hold what schedulers were built with: those of the class `cls`, or of all."""
    _import_built_in()
    if cls is None:
        return set().union(*(scheduler_settings(entry.cls) for entry in SCHEDULERS))
    entries = ((base, SCHEDULERS.entry_of(base)) for base in cls.__mro__)
    told = [(base, entry.settings) for base, entry in entries if entry is not None and entry.settings is not None]
    if told and told[0][0] is cls:
        return {*told[0][1]}
    # by convention `gamma` is kept as `gamma`, as `gammas` for each group, or as `_gamma`
    arguments = inspect.signature(cls).parameters
    by_name = {name for argument in arguments for name in (argument, f"{argument}s", f"_{argument}")} - _PLACE
    return by_name.union(*(settings for _, settings in told[:1]))


def get_scheduler(name: str, path: str = "optim.sched.name") -> Entry:
    """The scheduler registered as `name`.

    Raises:
        ConfigError: unknown, or its plugin does not import; `path` says where the name was found.

    """
    return SCHEDULERS.get(name, path)
