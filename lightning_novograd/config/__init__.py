"""The optim block: from any mapping to checked data, and from there to objects."""

from lightning_novograd.config.build import build_scheduler
from lightning_novograd.config.length import RunLength
from lightning_novograd.config.pipeline import build_optimizers, parse_optim
from lightning_novograd.config.schema import LarcConfig, OptimConfig, SchedConfig
from lightning_novograd.optim.param_groups import ParamGroupRule

__all__ = [
    "LarcConfig",
    "OptimConfig",
    "ParamGroupRule",
    "RunLength",
    "SchedConfig",
    "build_optimizers",
    "build_scheduler",
    "parse_optim",
]
