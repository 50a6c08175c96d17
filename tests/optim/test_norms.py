"""Norms of layers: exact at any size, in any layout and precision, and without a copy of the layer."""

import pytest
import torch
from optim_db import COMPLEX_LAYERS, DTYPES, LAYERS, layers

from lightning_novograd.optim.norms import cpu_squared_norm, squared_norms


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("kind", LAYERS)
def test_squared_norm(kind, dtype):
    layer = layers(dtype, [kind])[kind].detach()
    (norm,) = squared_norms([layer])
    assert norm.shape == ()
    assert norm.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = layer.double().square().sum()
    torch.testing.assert_close(norm.double(), expected, rtol=1e-12 if dtype == torch.float64 else 5e-6, atol=0)


@pytest.mark.parametrize("kind", COMPLEX_LAYERS)
def test_squared_norm_of_complex_numbers(kind):
    layer = layers(torch.complex64, [kind])[kind].detach()
    (norm,) = squared_norms([layer.conj()])
    torch.testing.assert_close(norm, layer.abs().square().sum())


def test_norms_keep_the_order_of_their_tensors():
    tensors = [
        torch.full((n,), 2.0, dtype=dtype) for n, dtype in enumerate([torch.float32, torch.bfloat16, torch.float64])
    ]
    assert [norm.item() for norm in squared_norms(tensors)] == [0.0, 4.0, 8.0]
    assert squared_norms([]) == []


@pytest.mark.parametrize("shape", [(3_000_001,), (700, 61, 71), (2, 1_500_000)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_layers_lose_no_digits(shape, dtype):
    """torch.linalg.vector_norm and torch.dot are off by 1e-4 and more here."""
    layer = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3).to(dtype)
    expected = layer.double().square().sum()
    error = abs(cpu_squared_norm(layer).double() / expected - 1)
    assert error < 2e-6


HUGE = 4_000_000
# Layers of the same number of elements: rows that are many and short or few and long, and memory in other orders.
LAYOUTS = {
    "column": lambda values: values.view(-1, 1),
    "row": lambda values: values.view(1, -1),
    "pairs": lambda values: values.view(-1, 2),
    "short rows": lambda values: values.view(100_000, 40),
    "many dimensions": lambda values: values.view(100_000, 2, 1, 5, 4),
    "transposed": lambda values: values.view(-1, 4).t(),
    "every other": lambda values: values.view(-1, 2)[:, :1],
    "expanded": lambda values: values[:1].expand(HUGE, 1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("equal", [False, True], ids=["normal", "equal"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_layout_loses_digits(layout, equal, dtype):
    """The promise is 1e-6; equal values are the hardest ones, since their roundings do not cancel."""
    values = torch.full((HUGE,), 1 / 3) if equal else torch.randn(HUGE, generator=torch.Generator().manual_seed(0))
    layer = LAYOUTS[layout](values.to(dtype))
    [norm] = squared_norms([layer])
    assert norm.dtype == torch.float32
    assert abs(norm.double() / layer.double().square().sum() - 1) < 1e-6


def test_large_layers_lose_no_digits_where_the_step_is_compiled():
    layer, small = torch.full((HUGE, 1), 1 / 3), torch.ones(4)
    torch._dynamo.reset()
    norm, four = torch.compile(squared_norms, backend="eager", fullgraph=True)([layer, small])
    assert abs(norm.double() / layer.double().square().sum() - 1) < 1e-6
    assert four == 4


def test_float16_overflow_is_not_reached():
    assert squared_norms([torch.full((100, 100), 6e4, dtype=torch.float16)])[0].item() == pytest.approx(
        3.6e13, rel=1e-3
    )


def test_the_foreach_norms_of_accelerators_equal_those_of_the_cpu():
    """What runs under torch.compile and on other devices; here it is compiled."""
    tensors = [p.detach() for p in layers(torch.float32).values() if p.numel() < 1000]
    torch._dynamo.reset()
    compiled = torch.compile(squared_norms, backend="eager")
    torch.testing.assert_close(compiled(tensors), squared_norms(tensors), rtol=1e-5, atol=1e-12)
