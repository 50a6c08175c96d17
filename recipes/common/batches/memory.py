"""How much memory the optimizer's state takes, before it takes it."""

import warnings
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_novograd.config.build import parts_of
from lightning_novograd.config.optimizers import whole

# precisions in which the weights themselves have another dtype, and the state with them
_DTYPES = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64, "64": torch.float64}
# beginnings of the strategies that spread the state over the ranks
_SHARDED = ("fsdp", "model_parallel", "deepspeed")


def outline(module: pl.LightningModule, trainer: Mapping[str, Any]) -> pl.LightningModule:
    """A module of the same parameters without their memory.

    Args:
        module: of the run, built from its hyper-parameter ``model``.
        trainer: the ``trainer`` block, whose precision counts.
    """
    with torch.device("meta"):
        made = type(module)(module.hparams["model"])
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return made.to(_DTYPES.get(str(trainer.get("precision")), torch.float32))


def describe_state(module: Any, trainer: Mapping[str, Any], world_size: int) -> str:
    """The optimizer's state of one rank in words, from a step of the run's own optimizer on tensors without memory.

    Args:
        module: of the run, as :func:`outline` takes it.
        trainer: the ``trainer`` block.
        world_size: number of ranks.

    Example:
        >>> from lightning_novograd import OptimMixin
        >>> class Line(OptimMixin, pl.LightningModule):
        ...     def __init__(self, model):
        ...         super().__init__()
        ...         self.save_hyperparameters()
        ...         self.line = nn.Linear(model["inputs"], 10)
        >>> module = Line({"inputs": 99})
        >>> module.optim_config = {"name": "adamw", "lr": 0.01}
        >>> describe_state(module, {}, world_size=2)
        'optimizer state (AdamW): 0.008008 MB on each of 2 ranks, for 0.001 M parameters'
    """
    made, config = outline(module, trainer), module.optim_config
    shards = world_size if str(trainer.get("strategy")).startswith(_SHARDED) else 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the optimizer that trains will say it
            size = state_bytes(whole(config, parts_of(config, made)), shards)
        known = f"{size / 1e6:.4g} MB"
    except Exception:  # anybody's optimizer, which looks at values or needs a closure: no reason not to train
        known = "known after the first step only"
    spread = f" (spread over the {world_size} ranks)" if shards > 1 else ""
    ranks = f" on each of {world_size} ranks" if world_size > 1 else ""
    millions = count_parameters(made) / 1e6
    return f"optimizer state ({config.name}): {known}{ranks}{spread}, for {millions:.3g} M parameters"


def state_bytes(optimizer: Optimizer, shards: int = 1) -> int:
    """Bytes of an optimizer's state after its first step, on the rank that has most of it.

    Args:
        optimizer: of parameters on the meta device; it is stepped.
        shards: ranks over which tensors of a parameter's shape are spread, by their first dimension as FSDP2 does.

    Example:
        >>> weight = torch.nn.Parameter(torch.empty(3, 5, device="meta"))
        >>> state_bytes(torch.optim.AdamW([weight])), state_bytes(torch.optim.AdamW([weight]), shards=2)
        (124, 84)
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    sizes = (
        _bytes(value, parameter, shards)
        for parameter, state in optimizer.state.items()
        for value in state.values()
        if isinstance(value, Tensor)
    )
    return sum(sizes, 0)


def _bytes(value: Tensor, parameter: Tensor, shards: int) -> int:
    if value.dim() and value.shape == parameter.shape:
        return -(-value.shape[0] // shards) * value[0].numel() * value.element_size()
    return value.numel() * value.element_size()


def count_parameters(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
