"""The optim block as a module is given it: in code, or by LightningCLI, which may leave numbers in it as text."""

import sys
from typing import Any

from lightning_novograd.config import OptimConfig, parse_optim
from lightning_novograd.config.arguments import of_command_line


def parse_assigned(cfg: Any, by_cli: bool) -> OptimConfig:
    """`parse_optim(cfg)`; of a block `by_cli`, texts are read as numbers where numbers are wanted.

    Raises:
        ConfigError: the block does not parse.

    """
    if not by_cli:
        return parse_optim(cfg)
    with of_command_line():
        return parse_optim(cfg)


def built_by_cli(lightning: str | None) -> bool:
    """Whether LightningCLI is building a module right now; `lightning` is the package that the module is of."""
    mixins = sys.modules.get(f"{lightning}.core.mixins.hparams_mixin")
    given = getattr(mixins, "_given_hyperparameters", None)
    return given is not None and given.get() is not None
