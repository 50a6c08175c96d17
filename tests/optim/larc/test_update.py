"""How much of a step is kept, as on a GPU too, where factors are tensors."""

import pytest
import torch

from lightning_novograd.optim.larc.update import _shorten_step


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("factor", [0.0, 0.25, 1.0])
def test_a_part_of_the_step_is_kept(factor, as_tensor, dtype):
    before = torch.tensor([1.0, -2.0, 0.5], dtype=dtype)
    after = torch.tensor([2.0, 3.0, 0.5], dtype=dtype)
    expected = {0.0: before.clone(), 0.25: torch.tensor([1.25, -0.75, 0.5], dtype=dtype), 1.0: after.clone()}[factor]
    _shorten_step(before, after, torch.tensor(factor) if as_tensor else factor)
    assert after.dtype == dtype
    assert torch.equal(after, expected)
