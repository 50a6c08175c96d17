"""BatchNorm over the batches of all processes where torch's is for GPUs alone: on the CPU."""

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins import LayerSync
from torch import Tensor, nn

from lightning_novograd.recipes.common.batch_norm import BatchNorm


class _SumOverRanks(torch.autograd.Function):
    """The sum over the processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total


class RanksBatchNorm(BatchNorm):
    """A :class:`BatchNorm` whose mean and variance are those of the values of all processes.

    Two collectives in a forward pass, for the mean and then for the squares around it, and two in a backward pass.
    """

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Normalize ``(batch, channels, frames)``; in eval mode as ever."""
        if not self.training:
            return super().forward(x_BCT)
        x = x_BCT.float() if x_BCT.dtype in (torch.float16, torch.bfloat16) else x_BCT
        count = x.new_full((1,), x.numel() // x.shape[1])
        totals = _SumOverRanks.apply(torch.cat([x.sum(dim=(0, 2)), count]))
        size = totals[-1].detach()
        mean_C = totals[:-1] / size
        centered = x - mean_C.unsqueeze(-1)
        var_C = _SumOverRanks.apply(centered.square().sum(dim=(0, 2))) / size
        self._note(mean_C.detach(), var_C.detach(), size)
        scale_C = (var_C + self.eps).rsqrt()
        y = centered * (scale_C * self.weight).unsqueeze(-1) + self.bias.unsqueeze(-1)
        return y.to(x_BCT.dtype)

    @torch.no_grad()
    def _note(self, mean_C: Tensor, var_C: Tensor, size: Tensor) -> None:
        """Move the running statistics, the variance unbiased, as torch does."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), self.momentum)
        unbiased_C = var_C * size / (size - 1).clamp(min=1)
        self.running_var.lerp_(unbiased_C.to(self.running_var.dtype), self.momentum)


class SyncBatchNormOnCPU(LayerSync):
    """Lightning's plugin for ``trainer.sync_batchnorm``, with layers that know the CPU.

    Layers keep their parameters, buffers and names; only their class changes for the time of a fit.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Have the norms of `model` look at all processes."""
        for layer in model.modules():
            if type(layer) is BatchNorm:
                layer.__class__ = RanksBatchNorm
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Have them look at their own batches again."""
        for layer in model.modules():
            if type(layer) is RanksBatchNorm:
                layer.__class__ = BatchNorm  # type: ignore[assignment]
        return model
