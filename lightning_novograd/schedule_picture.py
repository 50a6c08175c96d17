"""`plot-schedule`: the learning rates of an optim block, without the model it is for."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from lightning_novograd.config import parse_optim
from lightning_novograd.construct import new_optimizer
from lightning_novograd.errors import ConfigError
from lightning_novograd.factory import RunLength, build_scheduler
from lightning_novograd.optim_block import OptimConfig
from lightning_novograd.plain import load_yaml
from lightning_novograd.plotting import plot_schedule


def draw(config: Path, out: Path, max_steps: int | None = None) -> None:
    """Write a picture of LR against steps, one line per param group.

    Args:
        config: YAML file with the optim block at its top, as `optim`, or as `model.optim`.
        out: file to write; its suffix is the format.
        max_steps: of the run, where the block does not say it.

    Raises:
        ConfigError: no such block, no schedule in it, or no curve to draw.

    """
    optim = find_optim(load_yaml(config))
    if optim.sched is None:
        raise ConfigError(f"{optim.path}.sched", "missing; the learning rate is constant")
    if optim.sched.reduce_on_plateau:
        raise ConfigError(f"{optim.path}.sched.name", f"{optim.sched.name} follows a metric; it has no curve to draw")
    groups: list[dict[str, Any]] = [{"params": [_weight()], "name": "default"}]
    groups += [{"params": [_weight()], **rule.options, "name": rule.label} for rule in optim.param_groups]
    optimizer = new_optimizer(optim.name, groups, optim.args, optim.path)
    run = RunLength(max_steps, "--max-steps" if max_steps else "give --max-steps", max_steps)
    built = build_scheduler(optim.sched, optimizer, run)
    steps = optim.sched.max_steps or max_steps or optim.sched.max_epochs
    try:
        figure = plot_schedule(built["scheduler"], steps, title=f"{optim.name}, {optim.sched.name}")
    except ValueError as error:
        raise ConfigError(f"{optim.path}.sched", f"{error}; give --max-steps") from error
    figure.savefig(out, dpi=150)


def find_optim(document: Any) -> OptimConfig:
    """The optim block of a loaded YAML file.

    Raises:
        ConfigError: there is none.

    """
    if isinstance(document, DictConfig):
        if "optim" in document:
            return parse_optim(document.optim, "optim")
        if isinstance(document.get("model"), DictConfig) and "optim" in document.model:
            return parse_optim(document.model.optim, "model.optim")
        if "name" in document:
            return parse_optim(document, "optim")
    raise ConfigError("optim", "missing; the file needs an optim block at its top, as optim or as model.optim")


def _weight() -> nn.Parameter:
    return nn.Parameter(torch.zeros(1, 1))
