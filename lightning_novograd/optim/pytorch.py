"""torch's own optimizers, registered with what numbers their arguments may have.

Their constructors let much through that goes wrong in mid-run: `SGD(momentum=9)` and `RMSprop(alpha=2)` end in NaN,
`Adam(eps=0)` does at the first gradient that is zero, `LBFGS(history_size=0)` raises in its second step. What depends
on the learning rate too, as a weight decay does, is not judged here.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import optim

from lightning_novograd.errors import ConfigError, choices
from lightning_novograd.ranges import (
    AT_LEAST_1,
    BELOW_1,
    FINITE,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    SMALLEST_FLOAT32,
    Range,
)
from lightning_novograd.registry import OPTIMIZERS, Entry

# At 0 a gradient of zero is divided by zero; so it is where float32 makes a 0 of it, which may begin at this
_EPS = Range(
    f"above 0, and at least {SMALLEST_FLOAT32:.1e} for float32 to hold it", lambda value: value >= SMALLEST_FLOAT32
)
_NOT_POSITIVE = Range("at most 0", lambda value: value <= 0)
# Adafactor squares it in the parameters' precision: in float32, the square of less is 0, and of more infinite
_SMALLEST_EPS1, _LARGEST_EPS1 = 1e-22, 1e19
# Singular values that start at or below 1 and come beyond this are on their way to infinity
_LARGEST_SINGULAR_VALUE = 100.0

_ADAM = {"lr": NOT_NEGATIVE, "betas": BELOW_1, "eps": _EPS, "weight_decay": NOT_NEGATIVE}
_RANGES: dict[type, dict[str, Range]] = {
    optim.SGD: {"lr": NOT_NEGATIVE, "momentum": BELOW_1, "dampening": BELOW_1, "weight_decay": NOT_NEGATIVE},
    optim.Adam: _ADAM,
    optim.AdamW: _ADAM,
    optim.Adamax: _ADAM,
    optim.NAdam: {**_ADAM, "momentum_decay": NOT_NEGATIVE},
    optim.RAdam: _ADAM,
    optim.SparseAdam: {"lr": POSITIVE, "betas": BELOW_1, "eps": _EPS},
    optim.Adadelta: {"lr": NOT_NEGATIVE, "rho": SHARE, "eps": _EPS, "weight_decay": NOT_NEGATIVE},
    optim.Adagrad: {
        "lr": NOT_NEGATIVE,
        "lr_decay": NOT_NEGATIVE,
        "weight_decay": NOT_NEGATIVE,
        "initial_accumulator_value": NOT_NEGATIVE,
        "eps": NOT_NEGATIVE,
    },
    optim.Adafactor: {
        "lr": NOT_NEGATIVE,
        "beta2_decay": _NOT_POSITIVE,
        "eps": NOT_NEGATIVE,  # and more, in _check_adafactor
        "d": AT_LEAST_1,
        "weight_decay": NOT_NEGATIVE,
    },
    optim.RMSprop: {
        "lr": NOT_NEGATIVE,
        "alpha": BELOW_1,
        "eps": _EPS,
        "weight_decay": NOT_NEGATIVE,
        "momentum": BELOW_1,
    },
    # with a negative lambd or alpha the steps grow; averaging may start at any step
    optim.ASGD: {
        "lr": NOT_NEGATIVE,
        "lambd": NOT_NEGATIVE,
        "alpha": NOT_NEGATIVE,
        "t0": FINITE,
        "weight_decay": NOT_NEGATIVE,
    },
    optim.Rprop: {"lr": NOT_NEGATIVE, "etas": POSITIVE, "step_sizes": NOT_NEGATIVE},
    # a negative tolerance is one that is never reached
    optim.LBFGS: {
        "lr": NOT_NEGATIVE,
        "max_iter": AT_LEAST_1,
        "max_eval": AT_LEAST_1,
        "tolerance_grad": FINITE,
        "tolerance_change": FINITE,
        "history_size": AT_LEAST_1,
    },
    optim.Muon: {
        "lr": NOT_NEGATIVE,
        "weight_decay": NOT_NEGATIVE,
        "momentum": BELOW_1,
        "ns_coefficients": FINITE,
        "eps": _EPS,
        "ns_steps": Range("at least 0 and below 100", lambda value: 0 <= value < 100),
    },
}


def _check_rmsprop(args: Mapping[str, Any]) -> None:
    if args.get("centered") and args.get("alpha") == 0:
        raise ConfigError("alpha", f"{args['alpha']} leaves no variance to divide by; with centered it must be above 0")


def _check_adagrad(args: Mapping[str, Any]) -> None:
    eps = args.get("eps")
    if eps is not None and not _EPS.holds(eps) and not args.get("initial_accumulator_value"):
        problem = f"{eps} is out of range; must be {_EPS.words}, unless initial_accumulator_value is above 0"
        raise ConfigError("eps", problem)


def _check_adafactor(args: Mapping[str, Any]) -> None:
    eps1 = (args.get("eps") or (None,))[0]
    if eps1 is not None and eps1 < _SMALLEST_EPS1:
        problem = f"{eps1} is out of range; the first must be null or at least {_SMALLEST_EPS1}, whose square float32"
        root = f"; where others have {eps1}, torch has its root, {eps1**0.5:g}" if eps1 > 0 else ""
        raise ConfigError("eps", f"{problem} still holds (without it, a gradient of zero gives NaN){root}")
    if eps1 is not None and eps1 > _LARGEST_EPS1:
        problem = f"{eps1} is out of range; the first must be null or at most {_LARGEST_EPS1}, whose square float32"
        raise ConfigError("eps", f"{problem} still holds")


def _check_rprop(args: Mapping[str, Any]) -> None:
    low, high = args.get("step_sizes") or (0, 0)
    if low > high:
        raise ConfigError("step_sizes", f"{args['step_sizes']} are out of order; must be [smallest, largest]")


def _check_lbfgs(args: Mapping[str, Any]) -> None:
    name = args.get("line_search_fn")
    if name not in (None, "strong_wolfe"):
        raise ConfigError("line_search_fn", f"{name!r} is unknown{choices(name, ['strong_wolfe'])}, or null")


def _check_muon(args: Mapping[str, Any]) -> None:
    if args.get("ns_coefficients") is None:
        return
    a, b, c = args["ns_coefficients"]
    values = torch.linspace(0, 1, 101, dtype=torch.float64)
    for _ in range(args.get("ns_steps", 5)):
        values = a * values + b * values**3 + c * values**5
        if not values.abs().max() <= _LARGEST_SINGULAR_VALUE:  # or NaN
            raise ConfigError("ns_coefficients", f"{args['ns_coefficients']} diverge: x <- ax + bx^3 + cx^5 in 0..1")


# These divide by a number that is near 0 where gradients are, plus eps, and Adafactor by its square at least
_DIVIDE_BY_EPS = (
    optim.Adadelta,
    optim.Adafactor,
    optim.Adagrad,
    optim.Adam,  # and AdamW
    optim.Adamax,
    optim.NAdam,
    optim.RAdam,
    optim.RMSprop,
    optim.SparseAdam,
)


def check_precision(optimizer: optim.Optimizer) -> None:
    """Raise where the precision of the parameters makes a 0 of eps: float16 does of 1e-8, the default of most.

    torch computes in that precision, so that a gradient of zero, or one whose square is zero there, gives NaN or
    infinity; only the fused Adam and AdamW compute in float32.

    Args:
        optimizer: any; of others than torch's nothing is known.

    Raises:
        ConfigError: `path` is `eps`.

    """
    if not isinstance(optimizer, _DIVIDE_BY_EPS):
        return
    squared = isinstance(optimizer, optim.Adafactor)
    for group in optimizer.param_groups:
        eps = group.get("eps")  # a subclass may have none
        eps = eps[0] if squared and eps else eps
        if eps is None or (isinstance(optimizer, optim.Adam) and group.get("fused")):
            continue
        floors = [eps**2 if squared else eps, group.get("initial_accumulator_value", 0.0)]
        for dtype in {param.dtype for param in group["params"]}:
            if not torch.tensor(floors, dtype=torch.float64, device="cpu").to(dtype).any():
                raise ConfigError("eps", _lost_eps(eps, dtype, squared, group.get("name")))


def _lost_eps(eps: float, dtype: torch.dtype, squared: bool, group: str | None) -> str:
    tiny = torch.finfo(dtype).tiny
    enough = 10.0 ** math.ceil(math.log10(math.sqrt(tiny) if squared else tiny))
    of_group = f" of param group {group!r}" if group else ""
    said = f"{eps}{of_group} is 0 in {str(dtype).removeprefix('torch.')}{', when squared' if squared else ''}"
    cure = f"write {'null, or ' if squared else ''}at least {enough:g}"
    if dtype is torch.float16:
        cure += ", or train with precision bf16-true or 16-mixed"
    return f"{said}; {cure} (in the precision of the parameters, gradients near zero would give NaN)"


_CHECKS: dict[type, Callable[[Mapping[str, Any]], None]] = {
    optim.RMSprop: _check_rmsprop,
    optim.Adagrad: _check_adagrad,
    optim.Adafactor: _check_adafactor,
    optim.Rprop: _check_rprop,
    optim.LBFGS: _check_lbfgs,
    optim.Muon: _check_muon,
}

_DECOUPLED = {"decoupled_weight_decay": "weight_decay"}
# What is multiplied with 0 unless another argument is given; torch says so of `nesterov` itself
_NEEDS: dict[type, dict[str, str]] = {
    optim.SGD: {"dampening": "momentum"},
    optim.Adam: _DECOUPLED,
    optim.NAdam: _DECOUPLED,
    optim.RAdam: _DECOUPLED,
}

for _name, _cls in vars(optim).items():
    if isinstance(_cls, type) and issubclass(_cls, optim.Optimizer) and _cls is not optim.Optimizer:
        _facts: dict[str, Any] = {"ranges": _RANGES.get(_cls, {}), "check": _CHECKS.get(_cls)}
        OPTIMIZERS.add(Entry(_name, "optimizer", _cls, **_facts, needs=_NEEDS.get(_cls, {})))
