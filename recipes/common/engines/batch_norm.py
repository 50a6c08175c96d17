"""BatchNorm over the batches of all processes where torch's is for GPUs alone: on the CPU."""

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins import LayerSync
from torch import Tensor, nn

from lightning_novograd.errors import ConfigError
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


class _OverRanks:
    """A batch norm of torch whose mean and variance are those of the values of all processes.

    Two collectives in a forward pass, for the mean and then for the squares around it, and two in a backward pass.
    """

    def forward(self: Any, x: Tensor) -> Tensor:
        """Normalize ``(batch, channels, ...)``; in eval mode as ever."""
        if not self.training:
            return super().forward(x)  # type: ignore[misc]
        given, x = x.dtype, x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        others = [0, *range(2, x.ndim)]
        by_channel = (-1, *[1] * (x.ndim - 2))
        count = x.new_full((1,), x.numel() // x.shape[1])
        totals = _SumOverRanks.apply(torch.cat([x.sum(dim=others), count]))
        size = totals[-1].detach()
        mean_C = totals[:-1] / size
        centered = x - mean_C.view(by_channel)
        var_C = _SumOverRanks.apply(centered.square().sum(dim=others)) / size
        self._note(mean_C.detach(), var_C.detach(), size)
        scale_C = (var_C + self.eps).rsqrt()
        y = centered * (scale_C * self.weight).view(by_channel) + self.bias.view(by_channel)
        return y.to(given)

    @torch.no_grad()
    def _note(self: Any, mean_C: Tensor, var_C: Tensor, size: Tensor) -> None:
        """Move the running statistics, the variance unbiased, as torch does."""
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), self.momentum)
        unbiased_C = var_C * size / (size - 1).clamp(min=1)
        self.running_var.lerp_(unbiased_C.to(self.running_var.dtype), self.momentum)


class RanksBatchNorm(_OverRanks, BatchNorm):
    """A :class:`BatchNorm` of the recipes, over all processes."""


class RanksBatchNorm1d(_OverRanks, nn.BatchNorm1d):
    """torch's for sequences, over all processes."""


class RanksBatchNorm2d(_OverRanks, nn.BatchNorm2d):
    """torch's for images, over all processes."""


_OVER_RANKS: dict[type[nn.Module], type[nn.Module]] = {
    BatchNorm: RanksBatchNorm,
    nn.BatchNorm1d: RanksBatchNorm1d,
    nn.BatchNorm2d: RanksBatchNorm2d,
}
_ALONE = {over: alone for alone, over in _OVER_RANKS.items()}


class SyncBatchNormOnCPU(LayerSync):
    """Lightning's plugin for ``trainer.sync_batchnorm``, with layers that know the CPU.

    Layers keep their parameters, buffers and names; only their class changes for the time of a fit.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Have the norms of `model` look at all processes.

        Raises:
            ConfigError: it has a batch norm that cannot, or none at all.
        """
        norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        if not norms:
            raise ConfigError("trainer.sync_batchnorm", "the model has no BatchNorm")
        for layer in norms:
            over, needed = _OVER_RANKS.get(type(layer)), (layer.weight, layer.momentum, layer.running_mean)
            if over is None or any(part is None for part in needed):
                allowed = ", ".join(f"torch.nn.{kind.__name__}" for kind in _OVER_RANKS if kind is not BatchNorm)
                problem = f"on the CPU it is for {allowed} with weights, momentum and statistics, not for {layer}"
                raise ConfigError("trainer.sync_batchnorm", problem)
            layer.__class__ = over  # type: ignore[assignment]
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Have them look at their own batches again."""
        for layer in model.modules():
            if (alone := _ALONE.get(type(layer))) is not None:
                layer.__class__ = alone
        return model
