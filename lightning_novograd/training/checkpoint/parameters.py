"""Which parameters the states of a checkpoint belong to: torch numbers them in the order that rules put them in."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_novograd.errors import ConfigError
from lightning_novograd.optim.wrappers import plain_name

# The key of checkpoints that has the names, by optimizer and param group
KEY = "lightning_novograd_parameters"


def names_by_group(module: nn.Module, optimizer: Optimizer) -> list[list[str]]:
    """The parameters of each param group by name; empty for one that the module does not have (sharded, flattened)."""
    names = {parameter: plain_name(name) for name, parameter in module.named_parameters()}
    return [[names.get(parameter, "") for parameter in group["params"]] for group in optimizer.param_groups]


def check_same_parameters(path: str, saved: Sequence[Sequence[str]], made: Sequence[Sequence[str]]) -> None:
    """Refuse states that would be loaded into other parameters, whose momenta are none of theirs.

    Args:
        path: of the block.
        saved: `names_by_group` of the run that saved them.
        made: of this one.

    Raises:
        ConfigError: a state belongs to another parameter than the one in its place.

    """
    for before, now in zip(saved, made, strict=False):
        for theirs, ours in zip(before, now, strict=False):
            if theirs and ours and theirs != ours:
                problem = f"the checkpoint has the state of {theirs!r} where the config puts {ours!r}"
                how = "to change them, load the weights alone (load_from_checkpoint)"
                raise ConfigError(f"{path}.param_groups", f"{problem}; rules and no_decay stay within a run; {how}")


def saved_names(checkpoint: dict[str, Any]) -> list[list[list[str]]] | None:
    """What a checkpoint says; None: it is of a version that did not, or says something else."""
    names = checkpoint.get(KEY)
    return names if isinstance(names, list) else None
