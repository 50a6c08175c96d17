"""Lightning comes as two packages, `lightning.pytorch` and `pytorch_lightning`, whose classes do not mix."""

from typing import Any

_LIGHTNING = ("lightning.pytorch", "pytorch_lightning")


def lightning_of(thing: Any) -> str | None:
    """`"lightning.pytorch"` or `"pytorch_lightning"`, whichever a module, its class or a trainer is of, else None."""
    cls = thing if isinstance(thing, type) else type(thing)
    bases = (base for base in cls.__mro__ if base.__name__ in ("LightningModule", "Trainer"))
    return next(filter(None, map(package_of, bases)), None)


def package_of(cls: type) -> str | None:
    """The one of the two that a class is defined in, else None."""
    return next((name for name in _LIGHTNING if cls.__module__.startswith(f"{name}.")), None)


def check_same_lightning(trainer: Any, module: Any) -> None:
    """Refuse a trainer and a module of the two packages that Lightning comes in; call it before `trainer.fit`.

    Lightning itself says only that "`model` must be a `LightningModule`".

    Raises:
        TypeError: one is of `lightning.pytorch`, the other of `pytorch_lightning`.

    """
    of_trainer, of_module = lightning_of(trainer), lightning_of(module)
    if of_trainer != of_module:
        raise TypeError(
            f"the Trainer is {of_trainer}'s and {type(module).__name__} is a LightningModule of {of_module}: two "
            f"copies of Lightning, which do not mix; import both from {' or both from '.join(_LIGHTNING)}"
        )
