"""BatchNorm over all ranks, as one rank computes it: torch's values and gradients. Two ranks: test_ddp_ranks.py."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.common.batch_norm import BatchNorm
from lightning_novograd.recipes.common.engines.batch_norm import (
    RanksBatchNorm,
    RanksBatchNorm1d,
    RanksBatchNorm2d,
    SyncBatchNormOnCPU,
)


@pytest.fixture(autouse=True)
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("torchs", "ours", "shape"),
    [
        (nn.BatchNorm1d, RanksBatchNorm, (3, 4, 5)),
        (nn.BatchNorm1d, RanksBatchNorm1d, (6, 4)),
        (nn.BatchNorm2d, RanksBatchNorm2d, (3, 4, 5, 2)),
    ],
)
def test_values_gradients_and_statistics_are_torchs(torchs, ours, shape, dtype):
    torch.manual_seed(0)
    x, seen = torch.randn(shape, dtype=torch.float64).mul(2).add(1), []
    upstream = torch.randn(shape, dtype=torch.float64)
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    for kind in (torchs, ours):
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


def test_torchs_layers_come_back_too():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm1d(2))
    sync = SyncBatchNormOnCPU()
    assert [type(layer) for layer in sync.apply(model)] == [RanksBatchNorm2d, RanksBatchNorm1d]
    assert [type(layer) for layer in sync.revert(model)] == [nn.BatchNorm2d, nn.BatchNorm1d]


@pytest.mark.parametrize(
    ("layer", "problem"),
    [
        (nn.LayerNorm(2), "the model has no BatchNorm"),
        (nn.BatchNorm3d(2), "not for BatchNorm3d"),
        (nn.BatchNorm2d(2, affine=False), "not for BatchNorm2d"),
        (nn.BatchNorm2d(2, momentum=None), "not for BatchNorm2d"),
        (nn.BatchNorm2d(2, track_running_stats=False), "not for BatchNorm2d"),
    ],
    ids=str,
)
def test_what_would_stay_on_its_own_is_refused(layer, problem):
    with pytest.raises(ConfigError, match=f"trainer.sync_batchnorm: .*{problem}"):
        SyncBatchNormOnCPU().apply(nn.Sequential(layer))
