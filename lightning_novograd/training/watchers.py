"""Callbacks of ours for one fit, which no hook of the module's own turns off by not calling `super()`."""

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_novograd.training.packages import lightning_of

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback as _Callback
else:
    _Callback = object


class Watcher(_Callback):
    """Sees a fit; it has no state, so checkpoints do not know of it. Lightning's Callback is its next base."""


def put_first(trainer: Any, watchers: Sequence[Watcher]) -> None:
    """Have `watchers` see the fit of `trainer`, before its other callbacks do, in place of those of an earlier fit.

    Args:
        trainer: of either Lightning package, in `configure_optimizers`.
        watchers: made for it.

    """
    base = import_module(f"{lightning_of(trainer)}.callbacks").Callback
    for watcher in watchers:
        kind: Any = type(watcher)
        watcher.__class__ = _callback(kind, base)
    trainer.callbacks = [*watchers, *(other for other in trainer.callbacks if not isinstance(other, Watcher))]


@cache
def _callback(kind: Any, base: Any) -> Any:
    return type(kind.__name__, (kind, base), {"__module__": __name__})
