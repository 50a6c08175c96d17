"""Optimizers that keep averaged weights and swap them in for evaluation, such as Schedule-Free's, are told when.

They have the methods `eval` and `train`; calling one twice in a row does nothing more. The weights that they evaluate
are what a run ends with, by an exception too, and what checkpoints have, with the optimizer in the state that goes with
them.
"""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any, Literal

from torch.optim import Optimizer

from lightning_novograd.training.watchers import Watcher


def averages_itself(optimizer: Optimizer) -> bool:
    """Whether an optimizer has to be told."""
    return hasattr(optimizer, "eval") and hasattr(optimizer, "train")


class Teller(Watcher):
    """Tells the optimizers of a fit when training, and when an evaluation comes next.

    Training goes on with the first batch after an evaluation: what is saved until then has what was evaluated.

    Args:
        optimizers: those that have to be told.

    """

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self._optimizers: list[Any] = list(optimizers)
        self._trains = False  # whether a fit goes on and the model has not the weights that are evaluated

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Training may begin: Lightning's LR finder, whose steps no callback sees, comes next."""
        if trainer.ckpt_path is None:
            self._tell("train")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Training begins; a checkpoint has been loaded by now."""
        self._go_on(trainer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """It goes on."""
        if not self._trains:
            self._go_on(trainer)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """An evaluation comes."""
        if trainer.state.fn == "fit":
            self._evaluate()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave the weights that are evaluated in the trained model."""
        self._evaluate()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Do so where a fit has failed."""
        self._evaluate()

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Save the weights, and the optimizers' states, of an evaluation."""
        self.save(trainer, checkpoint)

    def save(self, trainer: Any, checkpoint: dict[str, Any]) -> None:
        """Give `checkpoint`, where it was made while training, what an evaluation would have."""
        if not self._trains:
            return
        self._tell("eval")
        try:
            # copies: the file is written when training goes on
            weights = deepcopy(dict(trainer.strategy.lightning_module_state_dict()))
            state_dict = checkpoint["state_dict"]
            checkpoint["state_dict"] = {name: weights.get(name, value) for name, value in state_dict.items()}
            if "optimizer_states" in checkpoint:
                states = [trainer.strategy.optimizer_state(optimizer) for optimizer in trainer.optimizers]
                checkpoint["optimizer_states"] = deepcopy(states)
        finally:
            self._tell("train")

    def _go_on(self, trainer: Any) -> None:
        if any(one is other for one in self._optimizers for other in trainer.optimizers):
            self._tell("train")
            self._trains = True

    def _evaluate(self) -> None:
        self._tell("eval")
        self._trains = False

    def _tell(self, mode: Literal["train", "eval"]) -> None:
        for optimizer in self._optimizers:
            getattr(optimizer, mode)()


def save_evaluated(trainer: Any, checkpoint: dict[str, Any]) -> None:
    """Give a checkpoint of weights alone, of which Lightning tells no callback, the weights of an evaluation."""
    if "optimizer_states" not in checkpoint:
        for callback in trainer.callbacks:
            if isinstance(callback, Teller):
                callback.save(trainer, checkpoint)
