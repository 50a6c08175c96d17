"""YAML files that have an optim block somewhere, or a schedule alone."""

from contextlib import suppress
from typing import Any

from omegaconf import DictConfig

from lightning_novograd.config.data import select
from lightning_novograd.config.schema import OptimConfig
from lightning_novograd.config.several import parse_blocks
from lightning_novograd.errors import ConfigError
from lightning_novograd.registry import get_optimizer, get_scheduler

# What has no optim block around it is built with
_OPTIMIZER = {"name": "sgd", "lr": 1.0, "momentum": 0.9}
# Where a config may have its optim block; the last is LightningCLI's
_PLACES = ("optim", "model.optim", "model.init_args.optim")


def find_blocks(document: Any) -> dict[str, OptimConfig]:
    """The optim blocks of a loaded YAML file by name; a single block has the name "".

    Raises:
        ConfigError: there is none, or it does not parse.

    """
    if isinstance(document, DictConfig):
        for path in _PLACES:
            if (block := select(document, path)) is not None:
                return parse_blocks(block, path)
        if (schedule := schedule_alone(document)) is not None:
            return parse_blocks({**_OPTIMIZER, "sched": schedule})
        if "name" in document:
            return parse_blocks(document)
        if "sched" in document:
            raise ConfigError("sched", "null; the learning rate is constant, and there is nothing to draw")
        if "defaults" in document:
            problem = "missing; Hydra takes it from another file of the defaults list. Draw the composed config, which"
            raise ConfigError("optim", f"{problem} the program writes with --cfg job --resolve")
    raise ConfigError("optim", f"missing; the file needs an optim block at its top, as {' or as '.join(_PLACES)}")


def schedule_alone(document: Any) -> Any:
    """The schedule of a file that has no optimizer, at its top or as `sched`; None if it is no such file."""
    if not isinstance(document, DictConfig) or any(select(document, path) is not None for path in _PLACES):
        return None
    if "name" not in document:
        return select(document, "sched")
    return document if _is_schedule(str(select(document, "name"))) else None


def _is_schedule(name: str) -> bool:
    """Whether only a scheduler is called so; what is unknown is said to be so as the block of an optimizer."""
    for get, answer in ((get_optimizer, False), (get_scheduler, True)):
        with suppress(ConfigError):
            get(name, "")
            return answer
    return False
