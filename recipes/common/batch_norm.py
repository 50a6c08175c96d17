"""Batch normalization of ``(batch, channels, frames)``, fast on the CPU."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

aten = torch.ops.aten


class BatchNorm(nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d``, with its statistics computed a quarter as long on the CPU.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` with mean and variance of a batch over examples and frames,
    padding included, as in NeMo. torch's kernel sums up one number after the other, in float64; here vectorized
    reductions do, over the frames and then over the batch: the mean first, then the squares of what differs from it.
    Both agree to float32's rounding, up to values whose squares float32 holds. All but float32 on the CPU is torch's.
    There is one derivative, and none of torch.func's.

    Args and state: those of ``torch.nn.BatchNorm1d``; ``convert_sync_batchnorm`` knows it.

    Example:
        >>> norm = BatchNorm(4)
        >>> norm(torch.randn(2, 4, 100)).shape
        torch.Size([2, 4, 100])
    """

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Normalize; in training the running statistics move."""
        is_usual = self.training and self.affine and self.momentum is not None and self.eps > 0
        if not (is_usual and _is_ours(x_BCT, self.weight)):  # torch says what is wrong, too
            return super().forward(x_BCT)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return _Normalized.apply(
            x_BCT, self.weight, self.bias, self.running_mean, self.running_var, self.momentum, self.eps
        )


def _is_ours(x: Tensor, weight_C: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight_C.dtype == torch.float32
        and x.dim() == 3
        and x.shape[1] == len(weight_C)
        and x.is_contiguous()
        and x.shape[0] * x.shape[2] > 1
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class _Normalized(torch.autograd.Function):
    """The formula above; its gradient is torch's own kernel's."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BCT: Tensor,
        weight_C: Tensor,
        bias_C: Tensor,
        running_mean_C: Tensor | None,
        running_var_C: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        batch, _, frames = x_BCT.shape
        count = batch * frames
        mean_C = x_BCT.sum(2).sum(0).div_(count)
        centered_BCT = x_BCT - mean_C.unsqueeze(1)
        # what float32 has rounded off the mean of large values: 1/sqrt(eps) would magnify it where they hardly vary
        rest_C = centered_BCT.sum(2).sum(0).div_(count)
        mean_C += rest_C
        # over one dimension vector_norm is vectorized; over two it is not
        var_C = torch.linalg.vector_norm(centered_BCT, dim=2).square_().sum(0).div_(count)
        var_C = (var_C - rest_C.square()).clamp_(min=0.0)
        if running_mean_C is not None and running_var_C is not None:
            running_mean_C.lerp_(mean_C, momentum)
            running_var_C.lerp_(var_C * (count / (count - 1)), momentum)
        ctx.save_for_backward(x_BCT, weight_C, mean_C, (var_C + eps).rsqrt_())
        ctx.eps = eps
        return torch.batch_norm(x_BCT, weight_C, bias_C, mean_C, var_C, False, 0.0, eps, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCT: Tensor) -> tuple[Tensor | None, ...]:
        x_BCT, weight_C, mean_C, scale_C = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        grads = aten.native_batch_norm_backward(
            grad_BCT.contiguous(), x_BCT, weight_C, None, None, mean_C, scale_C, True, ctx.eps, wanted
        )
        return (*(grad if is_wanted else None for grad, is_wanted in zip(grads, wanted, strict=True)), *[None] * 4)
