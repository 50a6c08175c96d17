"""Hydra's `_target_` in an optim block: compared with the paths of the registered classes, never imported or called."""

import re
import sys
from collections.abc import Iterator
from typing import Any

from lightning_novograd.registry import (
    OPTIMIZERS,
    SCHEDULERS,
    Entry,
    Kind,
    available_optimizers,
    available_schedulers,
)


def registered_at(target: Any, kind: Kind | None = None) -> Entry | None:
    """The registered class, of one kind or any, that can be imported as `target`: `"torch.optim.AdamW"`."""
    return next((entry for entry in _entries(kind) if target in _paths(entry.cls)), None)


def is_registered(name: str) -> bool:
    """Whether an optimizer has this name, that of an installed plugin included."""
    aliases = (alias for entry in _entries("optimizer") for alias in entry.aliases)
    return name.casefold() in {known.casefold() for known in (*available_optimizers(), *aliases)}


def name_for(target: Any) -> str:
    """`"; write name: NovoGrad"` where a class called as the last part of `target` is registered, else empty."""
    called = re.sub(r"(?<=.)(scheduler|params)$", "", _plain(str(target).rpartition(".")[2]))
    if called == "fusedadam":  # apex's
        return "; write name: fused_adam"
    names = (entry.name for entry in _entries(None) if called in (_plain(entry.name), f"fused{_plain(entry.name)}"))
    best = next(names, None)
    return f"; write name: {best}" if best is not None else ""


def _entries(kind: Kind | None) -> Iterator[Entry]:
    available_optimizers(), available_schedulers()  # which imports what is built in
    yield from () if kind == "scheduler" else OPTIMIZERS
    yield from () if kind == "optimizer" else SCHEDULERS


def _paths(cls: type) -> Iterator[str]:
    """Where a class stands, and the packages above that have it too."""
    module = cls.__module__
    yield f"{module}.{cls.__qualname__}"
    while "." in module:
        module = module.rpartition(".")[0]
        names = vars(sys.modules[module]) if module in sys.modules else {}
        # a package that imports its names when they are used has them in __all__ alone
        if names.get(cls.__name__, cls) is cls and cls.__name__ in {*names, *names.get("__all__", ())}:
            yield f"{module}.{cls.__qualname__}"


def _plain(name: str) -> str:
    return name.casefold().replace("_", "")
