"""Optimizers that keep averaged weights and swap them in for evaluation, such as Schedule-Free's, are told when.

They have the methods `eval` and `train`; calling one twice in a row does nothing more. The weights that they evaluate
are what a run ends with and what checkpoints have, with the optimizer in the state that goes with them.
"""

from copy import deepcopy
from typing import Any, Literal

from torch.optim import Optimizer


def tell(trainer: Any, mode: Literal["train", "eval"]) -> bool:
    """Tell the optimizers that want to know that training, or an evaluation, comes next; whether there are any."""
    optimizers = _told(trainer)
    for optimizer in optimizers:
        getattr(optimizer, mode)()
    return bool(optimizers)


def save_evaluated(trainer: Any, checkpoint: dict[str, Any]) -> None:
    """Give a checkpoint that is saved while training the weights, and the optimizers' states, of an evaluation."""
    if not _told(trainer):
        return
    tell(trainer, "eval")
    try:
        # copies: the file is written when training goes on
        weights = deepcopy(dict(trainer.strategy.lightning_module_state_dict()))
        checkpoint["state_dict"] = {name: weights.get(name, value) for name, value in checkpoint["state_dict"].items()}
        if "optimizer_states" in checkpoint:
            checkpoint["optimizer_states"] = deepcopy([trainer.strategy.optimizer_state(o) for o in trainer.optimizers])
    finally:
        tell(trainer, "train")


def _told(trainer: Any) -> list[Optimizer]:
    return [optimizer for optimizer in trainer.optimizers if hasattr(optimizer, "eval") and hasattr(optimizer, "train")]
