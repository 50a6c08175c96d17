"""NovoGrad, LARC, NeMo's LR schedules and exact large-batch plans for PyTorch Lightning, straight from YAML."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_novograd import _moved
from lightning_novograd._version import __version__
from lightning_novograd.errors import ConfigError, DataError

if TYPE_CHECKING:
    from lightning_novograd.config import OptimConfig, build_optimizers, parse_optim
    from lightning_novograd.large_batch import BatchPlan, BatchRamp, scale_lr, solve_batch_plan, solve_batch_ramp
    from lightning_novograd.optim import LARC, Composite, NovoGrad
    from lightning_novograd.registry import (
        available_optimizers,
        available_schedulers,
        register_optimizer,
        register_scheduler,
    )
    from lightning_novograd.training.attach import attach_optimizers
    from lightning_novograd.training.mixin import OptimMixin
    from lightning_novograd.training.packages import check_same_lightning

__all__ = [
    "LARC",
    "BatchPlan",
    "BatchRamp",
    "Composite",
    "ConfigError",
    "DataError",
    "NovoGrad",
    "OptimConfig",
    "OptimMixin",
    "__version__",
    "attach_optimizers",
    "available_optimizers",
    "available_schedulers",
    "build_optimizers",
    "check_same_lightning",
    "parse_optim",
    "register_optimizer",
    "register_scheduler",
    "scale_lr",
    "solve_batch_plan",
    "solve_batch_ramp",
]

# Imported when first used: torch takes a second to import, and the version or an error type should not
_MODULES = {
    "LARC": "optim",
    "BatchPlan": "large_batch",
    "BatchRamp": "large_batch",
    "Composite": "optim",
    "NovoGrad": "optim",
    "OptimConfig": "config",
    "OptimMixin": "training.mixin",
    "attach_optimizers": "training.attach",
    "available_optimizers": "registry",
    "available_schedulers": "registry",
    "build_optimizers": "config",
    "check_same_lightning": "training.packages",
    "parse_optim": "config",
    "register_optimizer": "registry",
    "register_scheduler": "registry",
    "scale_lr": "large_batch",
    "solve_batch_plan": "large_batch",
    "solve_batch_ramp": "large_batch",
}

_moved.install()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
