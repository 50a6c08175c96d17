"""Sparse gradients and the optimizers that want them, or do not: as far as a model shows it before its first step."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn, optim

from lightning_novograd.config.optimizers import Part
from lightning_novograd.config.schema import OptimConfig, own_optimizer
from lightning_novograd.errors import ConfigError
from lightning_novograd.log import rank_zero_logger
from lightning_novograd.optim import LARC, NovoGrad
from lightning_novograd.optim.wrappers import plain_name

log = rank_zero_logger(__name__)

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_DENSE_ONLY = (
    NovoGrad,
    *(optim.Adadelta, optim.Adafactor, optim.Adam, optim.Adamax, optim.ASGD),  # AdamW is an Adam
    *(optim.Muon, optim.NAdam, optim.RAdam, optim.RMSprop, optim.Rprop),
)
# torch's containers hold parameters for others to use, a subclass of Module may do with them what it likes
_OF_ANY_USE = ("torch.nn.modules.container", "torch.nn.modules.module")


def check_gradients(config: OptimConfig, parts: Sequence[Part], module: nn.Module) -> None:
    """Refuse SparseAdam where a gradient will be dense, and say where a sparse one will be refused.

    What a module outside of torch does with its own parameters is not known. A sparse embedding's gradient is dense
    where its weight is used elsewhere too, so that one is only warned of.

    Raises:
        ConfigError: a parameter of SparseAdam's belongs to one of torch's modules that is no sparse embedding.

    """
    names = {parameter: plain_name(name) for name, parameter in module.named_parameters()}
    owners = defaultdict(list)
    for owner in module.modules():
        for parameter in owner.parameters(recurse=False):
            owners[parameter].append(owner)
    embeddings = [names[p] for p, modules in owners.items() if all(map(_is_sparse, modules))]
    for part in parts:
        spec = own_optimizer(part.groups[0].rule) or config.optimizer
        under_larc = config.larc is not None or isinstance(part.optimizer, LARC)
        optimizer = part.optimizer.optimizer if isinstance(part.optimizer, LARC) else part.optimizer
        for group in optimizer.param_groups:
            refusal = "LARC does; write sparse=False" if under_larc else _refusal(optimizer, group)
            for parameter in group["params"]:
                dense = next((owner for owner in owners[parameter] if _is_dense(owner)), None)
                if isinstance(optimizer, optim.SparseAdam) and dense is not None:
                    problem = f"{spec.name} takes sparse gradients only, and that of {names[parameter]!r} is dense"
                    raise ConfigError(f"{spec.path}.name", f"{problem} ({_said(dense)}); {_way_out(embeddings)}")
                if refusal and names[parameter] in embeddings:
                    log.warning(
                        "%s: the gradient of %r is sparse (nn.Embedding(sparse=True)), which the first step will "
                        "refuse: %s",
                        *(spec.path, names[parameter], refusal),
                    )
                    refusal = ""


def _is_sparse(module: nn.Module) -> bool:
    return isinstance(module, _EMBEDDINGS) and module.sparse


def _is_dense(module: nn.Module) -> bool:
    """Whether it is one of torch's layers, or inherits from one, that gives dense gradients."""
    modules = (base.__module__ for base in type(module).__mro__)
    return not _is_sparse(module) and any(
        name.startswith("torch.nn.modules.") and name not in _OF_ANY_USE for name in modules
    )


def _said(module: nn.Module) -> str:
    return type(module).__name__ + (" without sparse=True" if isinstance(module, _EMBEDDINGS) else "")


def _way_out(embeddings: Sequence[str]) -> str:
    match = embeddings[0] if embeddings else "NAME"
    rule = f"{{match: {match!r}, optimizer: sparseadam}}"
    first = "" if embeddings else "make the embedding nn.Embedding(..., sparse=True) and "
    return f"{first}give the rest another optimizer: name: adamw, param_groups: [{rule}]"


def _refusal(optimizer: optim.Optimizer, group: Mapping[str, Any]) -> str:
    """Why and what to do where the optimizer takes no sparse gradients in this group; empty where it does."""
    kind = type(optimizer).__name__
    if isinstance(optimizer, _DENSE_ONLY):
        return f"{kind} does; write sparse=False, or give it SparseAdam in a rule, optimizer: sparseadam"
    if isinstance(optimizer, optim.SGD | optim.Adagrad):
        if group["weight_decay"]:
            return f"{kind} does with weight_decay; put the parameter into no_decay, or write sparse=False"
        if group["fused"]:
            return f"{kind} does with fused: true; remove it, or write sparse=False"
    return ""
