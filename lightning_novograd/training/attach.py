"""The optim block for LightningModules of others."""

from functools import cache
from typing import Any

from lightning_novograd.config.several import parse_blocks
from lightning_novograd.training.mixin import OptimMixin
from lightning_novograd.training.packages import lightning_of


def attach_optimizers(module: Any, cfg: Any) -> Any:
    """Give a LightningModule that is not yours the optimizer and schedule of `cfg`; returns the same module.

    Its class becomes a subclass with `OptimMixin` in front. `configure_optimizers` is ours, and the module's own never
    runs. Its `configure_gradient_clipping` is given the block's bound, if there is one, and its `lr_scheduler_step` is
    left out where a GradScaler skipped the step. Its other hooks run as before, and an `lr` of its own stays its own.
    Pickling and copying keep that. Its own class loads its checkpoints: their hyper-parameters are as that class saves
    them, except that `optim` becomes plain data.

    Args:
        module: a LightningModule of `lightning.pytorch` or `pytorch_lightning`.
        cfg: whatever `parse_optim` takes.

    Raises:
        ConfigError: the block does not parse.
        TypeError: not a LightningModule, or one with an attribute `optim_config` of its own.

    """
    parse_blocks(cfg)  # a mistake in it changes nothing
    cls: Any = type(module)
    if lightning_of(module) is None:
        raise TypeError(f"attach_optimizers takes a LightningModule, not {cls.__name__}")
    if not isinstance(module, OptimMixin):
        if hasattr(module, "optim_config"):
            raise TypeError(f"{cls.__name__} has an optim_config of its own, which attaching would hide; rename it")
        module.__class__ = _with_mixin(cls)
    module.optim_config = cfg
    return module


@cache
def _with_mixin(cls: Any) -> Any:
    def reduce(self: Any, protocol: int) -> tuple[Any, ...]:
        return _new_attached, (cls,), self.__getstate__()

    members = {
        "_attached": True,
        "__reduce_ex__": reduce,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
    }
    return type(cls.__name__, (OptimMixin, cls), members)


def _new_attached(cls: type) -> Any:
    attached = _with_mixin(cls)
    return attached.__new__(attached)
