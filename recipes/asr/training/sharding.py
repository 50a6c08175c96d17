"""The module of the recipe with its weights spread over the processes (FSDP2)."""

import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, fully_shard

from lightning_novograd.recipes.asr.training.module import CTCModule


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
