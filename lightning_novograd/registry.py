"""Names in configs -> classes. Built in: all of torch.optim, NovoGrad, NeMo's schedules; others register theirs."""

import importlib
import importlib.metadata
import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import torch
from torch.optim import lr_scheduler as torch_schedulers

from lightning_novograd import lr_scheduler
from lightning_novograd.config.arguments import Argument, arguments_of
from lightning_novograd.errors import ConfigError, choices

Kind = Literal["optimizer", "scheduler", "wrapper"]

# What the registry fills in itself; a config never holds it
_SKIPPED: dict[Kind, tuple[str, ...]] = {
    "optimizer": ("params",),
    "scheduler": ("optimizer",),
    "wrapper": ("optimizer",),
}
# What the classes of other packages must be
_BASES: dict[Kind, type] = {"optimizer": torch.optim.Optimizer, "scheduler": torch_schedulers.LRScheduler}


@dataclass(frozen=True)
class Entry:
    """A registered class.

    Args:
        name: what configs call it; looked up without regard to case.
        kind: `"optimizer"`, `"scheduler"`, or `"wrapper"` for LARC, which no name chooses.
        target: the class, or `"package.module:Class"`, imported when first asked for.
        aliases: further names.
        interval: schedulers: how often Lightning steps it unless the config says so.
        length: schedulers: the argument that takes the length of the run.

    """

    name: str
    kind: Kind
    target: type | str
    aliases: tuple[str, ...] = ()
    interval: Literal["step", "epoch"] = "step"
    length: str | None = None
    _help: str = field(default="", repr=False)
    _paper: str = field(default="", repr=False)

    @property
    def cls(self) -> type:
        """The class itself."""
        if isinstance(self.target, type):
            return self.target
        module, _, attribute = self.target.partition(":")
        return getattr(importlib.import_module(module), attribute)

    @property
    def arguments(self) -> dict[str, Argument]:
        """What a config may set, in the order of the signature."""
        return arguments_of(self.cls, _SKIPPED[self.kind])

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


class _Registry:
    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def add(self, entry: Entry) -> None:
        for name in (entry.name, *entry.aliases):
            taken = self._entries.get(name.casefold())
            if taken is not None:
                raise ConfigError("", f"{self.kind} {name!r} is already registered ({taken.target})")
        for name in (entry.name, *entry.aliases):
            self._entries[name.casefold()] = entry

    def remove(self, name: str) -> None:
        entry = self._entries[name.casefold()]
        for known in (entry.name, *entry.aliases):
            del self._entries[known.casefold()]

    def names(self) -> list[str]:
        own = {entry.name for entry in self._entries.values()}
        return sorted(own | {point.name for point in _entry_points(self.kind)}, key=str.casefold)

    def get(self, name: str, path: str) -> Entry:
        points = [point for point in _entry_points(self.kind) if point.name.casefold() == name.casefold()]
        entry = self._entries.get(name.casefold())
        offers = [_distribution(point) for point in points] + ([str(entry.target)] if entry else [])
        if len(offers) > 1:
            raise ConfigError(path, f"{self.kind} {name!r} is offered more than once: by {', '.join(offers)}")
        if points:
            return _load(points[0], self.kind, path)
        if entry is None:
            known = {*self.names(), *(alias for e in self._entries.values() for alias in e.aliases)}
            raise ConfigError(path, f"unknown {self.kind} {name!r}{self._not_fused(name) or choices(name, known)}")
        return entry

    def _not_fused(self, name: str) -> str:
        """A hint for `fused_adam` and its like: apex and NeMo have classes for what is an argument here."""
        plain = self._entries.get(re.sub("^fused_?", "", name.casefold()))
        if plain is None or "fused" not in plain.arguments:
            return ""
        meant = "AdamW (as apex's is by default) or Adam" if plain.name == "Adam" else plain.name
        return f"; did you mean {meant}, with fused: true?"


@cache
def _entry_points(kind: Kind) -> tuple[importlib.metadata.EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=f"lightning_novograd.{kind}s"))


def _distribution(point: importlib.metadata.EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _load(point: importlib.metadata.EntryPoint, kind: Kind, path: str) -> Entry:
    try:
        loaded = point.load()
    except Exception as error:
        # a plugin may fail in any way while it is imported; the user must learn whose fault it is
        problem = f"{kind} {point.name!r} of the distribution {_distribution(point)!r} cannot be imported"
        raise ConfigError(path, f"{problem}: {type(error).__name__}: {error}") from error
    if not isinstance(loaded, type) or not issubclass(loaded, _BASES[kind]):
        of = f"{kind} {point.name!r} of the distribution {_distribution(point)!r}"
        raise ConfigError(path, f"{of} is not a class that inherits from {_BASES[kind].__name__}: {loaded!r}")
    return _with_length(Entry(point.name, kind, loaded, length="max_steps" if kind == "scheduler" else None))


def _with_length(entry: Entry) -> Entry:
    """The entry, without `length` where the class has no such argument."""
    return entry if entry.length in entry.arguments else replace(entry, length=None)


_OPTIMIZERS = _Registry("optimizer")
_SCHEDULERS = _Registry("scheduler")


def register_optimizer(
    name: str, cls: type | None = None, *, aliases: Iterable[str] = (), help: str = "", paper: str = ""
) -> Callable[[type], type] | type:
    """Make an optimizer known to configs under `name`; also a class decorator.

    Args:
        name: unique, compared without regard to case.
        cls: a `torch.optim.Optimizer` class; None: use as a decorator.
        aliases: further names.
        help: one line for `describe`; the docstring's first line if empty.
        paper: link; the docstring's first link to a paper if empty.

    Raises:
        ConfigError: a name is taken.

    Example:
        >>> @register_optimizer("my_sgd")
        ... class MySGD(torch.optim.SGD): ...
        >>> get_optimizer("My_SGD").cls is MySGD
        True
        >>> unregister_optimizer("my_sgd")

    """
    return _register(_OPTIMIZERS, name, cls, aliases=tuple(aliases), _help=help, _paper=paper)


def register_scheduler(
    name: str,
    cls: type | None = None,
    *,
    aliases: Iterable[str] = (),
    interval: Literal["step", "epoch"] = "step",
    length: str | None = "max_steps",
    help: str = "",
    paper: str = "",
) -> Callable[[type], type] | type:
    """Make an LR scheduler known to configs under `name`; also a class decorator.

    Args:
        name: unique, compared without regard to case.
        cls: a `torch.optim.lr_scheduler.LRScheduler` class; None: use as a decorator.
        aliases: further names.
        interval: `"step"` or `"epoch"`: how often it is stepped unless the config says so.
        length: the argument that takes the number of optimizer steps of the run, if the class has it.
        help: one line for `describe`; the docstring's first line if empty.
        paper: link; the docstring's first link to a paper if empty.

    Raises:
        ConfigError: a name is taken.

    """
    meta = {"interval": interval, "length": length, "_help": help, "_paper": paper}
    return _register(_SCHEDULERS, name, cls, aliases=tuple(aliases), **meta)


def _register(registry: _Registry, name: str, cls: type | None, **meta: Any) -> Callable[[type], type] | type:
    def add(cls: type) -> type:
        if not isinstance(cls, type):
            raise ConfigError("", f"{registry.kind} {name!r}: a class is registered, not {cls!r}")
        registry.add(_with_length(Entry(name, registry.kind, cls, **meta)))
        return cls

    return add if cls is None else add(cls)


def unregister_optimizer(name: str) -> None:
    """Forget an optimizer, aliases included."""
    _OPTIMIZERS.remove(name)


def unregister_scheduler(name: str) -> None:
    """Forget a scheduler, aliases included."""
    _SCHEDULERS.remove(name)


def available_optimizers() -> list[str]:
    """Names that `optim.name` may have, those of installed plugins included."""
    return _OPTIMIZERS.names()


def available_schedulers() -> list[str]:
    """Names that `optim.sched.name` may have, those of installed plugins included."""
    return _SCHEDULERS.names()


def get_optimizer(name: str, path: str = "optim.name") -> Entry:
    """The optimizer registered as `name`.

    Raises:
        ConfigError: unknown, or its plugin does not import; `path` says where the name was found.

    """
    return _OPTIMIZERS.get(name, path)


def get_scheduler(name: str, path: str = "optim.sched.name") -> Entry:
    """The scheduler registered as `name`.

    Raises:
        ConfigError: unknown, or its plugin does not import; `path` says where the name was found.

    """
    return _SCHEDULERS.get(name, path)


LARC = Entry("LARC", "wrapper", "lightning_novograd.optim:LARC")

# Short names of the common ones, and OpenSeq2Seq's names of its own
_ALIASES: dict[str, tuple[str, ...]] = {
    "CosineAnnealing": ("cosine",),
    "PolynomialDecayAnnealing": ("polynomial",),
    "WarmupPolicy": ("warmup",),
    "PiecewiseConstant": ("piecewise_constant",),
    "ExpDecay": ("exp_decay",),
    "PolyDecay": ("poly_decay",),
    "CosineDecay": ("cosine_decay",),
    "TransformerPolicy": ("transformer_policy",),
    "InvPolyDecay": ("inv_poly_decay",),
}
# torch's per-batch schedulers, by their documentation, and the arguments that are the length of a run
_TORCH_PER_STEP = {"OneCycleLR", "CyclicLR"}
_TORCH_LENGTH = {"OneCycleLR": "total_steps", "CosineAnnealingLR": "T_max"}


def _add_built_in() -> None:
    _OPTIMIZERS.add(Entry("NovoGrad", "optimizer", "lightning_novograd.optim:NovoGrad"))
    for name, cls in vars(torch.optim).items():
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer:
            _OPTIMIZERS.add(Entry(name, "optimizer", cls))
    for name in lr_scheduler.__all__:
        register_scheduler(name, getattr(lr_scheduler, name), aliases=_ALIASES.get(name, ()))
    for name in torch_schedulers.__all__:
        cls = getattr(torch_schedulers, name)
        if cls is not torch_schedulers.LRScheduler:
            interval: Literal["step", "epoch"] = "step" if name in _TORCH_PER_STEP else "epoch"
            _SCHEDULERS.add(Entry(name, "scheduler", cls, interval=interval, length=_TORCH_LENGTH.get(name)))


_add_built_in()
