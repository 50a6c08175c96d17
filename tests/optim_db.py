"""The table of inputs that every optimizer of the package is tested with: layers x dtypes x options x workers.

`layers(dtype)` makes one parameter of every kind, `grads(params, step)` their gradients; both are functions of their
arguments alone. `OPTIONS` are NovoGrad's; LARC's tests bring their own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

# How workers are asked for. "default" is what a user gets who asks for none.
WORKERS: dict[str, dict[str, bool]] = {
    "single": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "default": {},
}

# A kind of layer: normal values of a shape, laid out in memory in one of the ways that occur.
Normal = Callable[..., Tensor]
LAYERS: dict[str, Callable[[Normal], Tensor]] = {
    "matrix": lambda normal: normal(4, 3),
    "conv": lambda normal: normal(4, 2, 3),
    "depthwise": lambda normal: normal(8, 1, 5),
    "vector": lambda normal: normal(37),
    "scalar": lambda normal: normal(),
    "empty": lambda normal: normal(0),
    "empty-3d": lambda normal: normal(2, 0, 3),
    "one-element": lambda normal: normal(1, 1),
    "transposed": lambda normal: normal(5, 7).t(),
    "every-other": lambda normal: normal(6, 10)[:, ::2],
    "channels-last": lambda normal: normal(3, 4, 2, 5).contiguous(memory_format=torch.channels_last),
    "many-rows": lambda normal: normal(300, 500),
    "long": lambda normal: normal(200_003),
}
COMPLEX_LAYERS: dict[str, Callable[[Normal], Tensor]] = {
    "complex-matrix": lambda normal: torch.complex(normal(4, 3), normal(4, 3)),
    "complex-scalar": lambda normal: torch.complex(normal(), normal()),
    "complex-transposed": lambda normal: torch.complex(normal(2, 5), normal(2, 5)).t(),
}

OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "nemo-quartznet": {"lr": 0.01, "betas": (0.8, 0.5), "weight_decay": 1e-3},
    "weight-decay": {"lr": 0.02, "weight_decay": 0.1},
    "grad-averaging": {"lr": 0.05, "grad_averaging": True, "weight_decay": 0.01},
    "amsgrad": {"lr": 0.01, "betas": (0.95, 0.25), "amsgrad": True},
    "luc": {"lr": 0.01, "luc": True, "luc_trust": 0.01, "luc_eps": 1e-6, "weight_decay": 1e-3},
    "luc-amsgrad": {"lr": 1e-4, "luc": True, "amsgrad": True, "betas": (0.9, 0.0)},
    "maximize": {"lr": 0.01, "maximize": True, "weight_decay": 0.1},
    "maximize-luc": {"lr": 0.01, "maximize": True, "luc": True, "luc_trust": 0.02},
    "large-eps": {"lr": 0.01, "eps": 1e-2, "weight_decay": 1e-3},
    "zero-eps": {"lr": 0.01, "eps": 0.0, "weight_decay": 1e-3},
    "no-second-moment": {"lr": 0.01, "betas": (0.95, 0.0)},
    "no-momentum": {"lr": 0.01, "betas": (0.0, 0.98), "weight_decay": 1e-3},
    "lr-tensor": {"lr": torch.tensor(0.01), "weight_decay": 1e-3},
    "lr-tensor-luc": {"lr": torch.tensor([0.01]), "luc": True, "luc_trust": 0.02},
    "lr-zero": {"lr": 0.0, "weight_decay": 1e-3},
}

STEPS = 5


def layers(dtype: torch.dtype, kinds: Sequence[str] | None = None) -> dict[str, torch.nn.Parameter]:
    """One parameter of every kind in `LAYERS` (for a complex dtype, in `COMPLEX_LAYERS`)."""
    table = COMPLEX_LAYERS if dtype.is_complex else LAYERS
    return {
        kind: _parameter(table[kind], dtype, seed) for seed, kind in enumerate(table) if kinds is None or kind in kinds
    }


def grads(params: dict[str, torch.nn.Parameter], step: int) -> dict[str, Tensor | None]:
    """The gradients of step 0, 1, ...: laid out as the parameters, of sizes from 1e-4 to 1e2, some zero or None.

    "matrix" gets its first gradient at step 2, as a layer unfrozen in mid-training, and none at step 3; "conv" starts
    with a zero gradient; "vector" has an outlier; "many-rows" has its gradients in another memory layout.
    """
    result: dict[str, Tensor | None] = {}
    for index, (kind, param) in enumerate(params.items()):
        normal = _normal(1000 * (step + 1) + index)
        grad = torch.empty_like(param.detach())
        scale = 1e2 if (kind, step) == ("vector", 1) else (1e-4, 1e-2, 1.0)[index % 3]
        values = (
            torch.complex(normal(*param.shape), normal(*param.shape)) if param.is_complex() else normal(*param.shape)
        )
        grad.copy_(values * scale)
        if kind == "conv" and step == 0:
            grad.zero_()
        if kind == "many-rows":
            grad = grad.t().contiguous().t()
        result[kind] = None if kind == "matrix" and step not in (2, 4) else grad
    return result


def set_grads(params: dict[str, torch.nn.Parameter], step: int) -> None:
    """Put the gradients of a step where `backward` would."""
    for kind, grad in grads(params, step).items():
        params[kind].grad = grad


# A NovoGrad step rounds 10 times from gradient and weight to weight, LUC's ratio 5 times, the constants 4 times (the
# other optimizers' steps with LARC's ratio do so no more often). The rest is for the sums of squares, summed in blocks:
# their square root halves their error.
ROUNDINGS = 32


def assert_close(
    actual: Tensor, expected: Tensor, dtype: torch.dtype, what: str, terms: Tensor | None = None, steps: int = 1
) -> None:
    """`actual` is `expected` within what computing in float32 or wider and rounding once to `dtype` allows.

    `terms` is the sum of the magnitudes that each value was added up from in so many `steps` (`ReferenceNovoGrad`
    keeps it, `terms_of` finds it): where they cancel, their rounding stays. Without it, the largest value of the layer
    stands for all.
    """
    wide = dtype in (torch.float64, torch.complex128)
    if terms is not None:
        # one rounding errs by half of eps; a float64 reference rounds as often as what it judges
        rounding = torch.finfo(torch.float64).eps if wide else torch.finfo(torch.float32).eps / 2
        allowed = steps * ROUNDINGS * rounding * (terms.unsqueeze(-1) if dtype.is_complex else terms)
    actual, expected = (torch.view_as_real(t) if t.is_complex() else t for t in (actual.detach().cpu(), expected))
    error = (actual.double() - expected).abs()
    largest = expected.abs().max() if expected.numel() else 0.0
    if terms is None:
        allowed = (1e-12 if wide else 1e-5) * largest
    if dtype in (torch.bfloat16, torch.float16):
        info = torch.finfo(dtype)
        allowed = allowed + 0.51 * info.eps * expected.abs().clamp(min=info.tiny)
    excess = error - allowed
    assert not (excess > 0).any(), f"{what}: off by up to {error.max():.3g} at values up to {largest:.3g}"
    assert torch.equal(actual.isfinite(), expected.isfinite()), f"{what}: not finite"


def terms_of(values: Sequence[Tensor]) -> Tensor:
    """What the last of a layer's `values`, one for each step, was added up from: the first and every change.

    The largest stands for the whole layer, since single changes may have cancelled.
    """
    changes = torch.diff(torch.stack(list(values)), dim=0, prepend=torch.zeros_like(values[0]).unsqueeze(0))
    terms = changes.abs().sum(0)
    return terms.amax() if terms.numel() else torch.tensor(0.0)


def _parameter(make: Callable[[Normal], Tensor], dtype: torch.dtype, seed: int) -> torch.nn.Parameter:
    values = make(_normal(seed))
    # `.to` keeps dense layouts only; a sliced layer must stay one.
    stored = torch.empty_strided(values.size(), values.stride(), dtype=dtype)
    stored.copy_(values * 0.3)
    return torch.nn.Parameter(stored)


def _normal(seed: int) -> Normal:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)
