"""The optim block as a module is given it: in code, or by LightningCLI, which may leave numbers in it as text."""

import sys
from typing import Any

from lightning_novograd.config import OptimConfig
from lightning_novograd.config.arguments import of_command_line
from lightning_novograd.config.several import parse_blocks


def parse_assigned(cfg: Any, by_cli: bool) -> dict[str, OptimConfig]:
    """The blocks of `cfg` by name; of those `by_cli`, texts are read as numbers where numbers are wanted.

    Raises:
        ConfigError: a block does not parse.

    """
    if not by_cli:
        return parse_blocks(cfg)
    with of_command_line():
        return parse_blocks(cfg)


def built_by_cli(lightning: str | None) -> bool:
    """Whether LightningCLI is building a module right now; `lightning` is the package that the module is of."""
    mixins = sys.modules.get(f"{lightning}.core.mixins.hparams_mixin")
    given = getattr(mixins, "_given_hyperparameters", None)
    return given is not None and given.get() is not None
