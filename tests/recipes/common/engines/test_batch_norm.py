"""BatchNorm over all ranks, as one rank computes it: torch's values and gradients. Two ranks: test_ddp_ranks.py."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lightning_novograd.recipes.common.batch_norm import BatchNorm
from lightning_novograd.recipes.common.engines.batch_norm import RanksBatchNorm, SyncBatchNormOnCPU


@pytest.fixture(autouse=True)
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_gradients_and_statistics_are_torchs(dtype):
    torch.manual_seed(0)
    x, seen = torch.randn(3, 4, 5, dtype=torch.float64).mul(2).add(1), []
    upstream = torch.randn(3, 4, 5, dtype=torch.float64)
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    for kind in (nn.BatchNorm1d, RanksBatchNorm):
        norm = kind(4, eps=1e-3, dtype=parameters)
        nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
        given = x.to(dtype).requires_grad_()
        for _ in range(2):
            norm(given).backward(upstream.to(dtype))
        buffers = dict(norm.named_buffers())
        seen.append({"y": norm(given), "x": given.grad, "w": norm.weight.grad, "b": norm.bias.grad, **buffers})
    for name, tensor in seen[0].items():
        assert seen[1][name].dtype == tensor.dtype, name
        close = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
        torch.testing.assert_close(seen[1][name], tensor, rtol=close, atol=close, msg=name)


def test_layers_are_the_same_before_and_after():
    model = nn.Sequential(nn.Conv1d(2, 4, 1), BatchNorm(4), BatchNorm(4).eval())
    before = {name: id(tensor) for name, tensor in model.named_parameters()}
    sync = SyncBatchNormOnCPU()
    assert sync.apply(model) is model
    assert [type(layer) for layer in model[1:]] == [RanksBatchNorm, RanksBatchNorm]
    x = torch.randn(2, 4, 3)
    torch.testing.assert_close(model[2](x), x, rtol=1e-4, atol=1e-4)  # in eval mode by its statistics
    assert sync.revert(model) is model
    assert [type(layer) for layer in model[1:]] == [BatchNorm, BatchNorm]
    assert {name: id(tensor) for name, tensor in model.named_parameters()} == before
