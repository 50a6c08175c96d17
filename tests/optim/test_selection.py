"""What the shorthands stand for."""

import pytest
import torch
from torch import nn

from lightning_novograd.optim.selection import Uses


def shaped(name: str, *shape: int) -> nn.Module:
    """A module of a class of that name with a weight of that shape."""
    module = type(name, (nn.Module,), {})()
    module.weight = nn.Parameter(torch.ones(shape))
    return module


@pytest.mark.parametrize(
    ("name", "shape", "is_norm"),
    [
        ("LayerNormFp32", (4,), True),
        ("FrozenBatchNorm2d", (1, 4, 1, 1), True),
        ("InstanceNormalization", (4,), True),
        ("RMSNorm", (4, 3), True),
        ("GroupNorm3d", (4, 3), True),
        ("LayerNormLinear", (4, 3), False),
        ("NormalizingFlow", (4,), False),
        ("NormalNoise", (4,), False),
    ],
)
def test_norms_that_torch_does_not_know_go_by_the_names_of_their_classes(name, shape, is_norm):
    assert (Uses(shaped(name, *shape)).selected("norm") == {0}) is is_norm
