"""A model whose weights are spread over the processes (FSDP2)."""

from datetime import timedelta
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn

FSDP2 = "fsdp2"  # as trainer.strategy


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, whose checkpoints are whole files, as those of DDP.

    Args:
        world_size: processes of the run, on all nodes; the weights are spread over all of them.
        timeout: of the process group.
    """

    def __init__(self, world_size: int, timeout: timedelta) -> None:
        super().__init__(world_size, tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load weights, and the optimizer's state where training goes on: an average of weights has none."""
        assert self.lightning_module is not None
        if self.lightning_module.trainer.state.fn == TrainerFn.FITTING:
            return super().load_checkpoint(checkpoint_path, weights_only)
        optimizers, self.optimizers = self.optimizers, []
        try:
            return super().load_checkpoint(checkpoint_path, weights_only)
        finally:
            self.optimizers = optimizers
