"""A model whose weights are spread over the processes (FSDP2)."""

from datetime import timedelta
from typing import Any

import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.fsdp import FSDPModule, fully_shard

from lightning_novograd.recipes.asr.training.module import CTCModule

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


class ShardedCTCModule(CTCModule):
    """A :class:`CTCModule` for Lightning's ``ModelParallelStrategy``: each block of the encoder is a unit of FSDP2.

    A unit's weights are gathered when the forward and the backward pass come to it; gradients, weights between the
    passes and the optimizer's state are this process's part. Running statistics of BatchNorm are whole on each process
    and its own; evaluations take those of the first, which checkpoints hold, as with DDP.
    """

    def configure_model(self) -> None:
        """Lightning's hook, called before each fit and evaluation: spread the weights, once."""
        if isinstance(self.model, FSDPModule):
            return
        mesh = self.device_mesh["data_parallel"]  # type: ignore[index]
        for unit in (*self.model.encoder.encoder, self.model.decoder, self.model):
            fully_shard(unit, mesh=mesh)

    def on_validation_start(self) -> None:
        """Lightning's hook: have all processes validate the same statistics."""
        super().on_validation_start()
        self._share_statistics()

    def on_test_start(self) -> None:
        """Lightning's hook: have all processes test the same statistics."""
        super().on_test_start()
        self._share_statistics()

    def _share_statistics(self) -> None:
        for buffer in self.buffers():
            dist.broadcast(buffer, src=0)
