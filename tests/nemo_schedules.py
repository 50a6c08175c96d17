"""NeMo's learning rates by its formulas, for one param group: the policies that its configs name.

`nemo/test_configs.py` compares them with the reference values that NeMo itself computed.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

Arguments = Mapping[str, Any]


def _part(args: Arguments, name: str, max_steps: int) -> int:
    """`warmup_steps`, or the share `warmup_ratio` of the run; so with `hold` and `constant`."""
    if args.get(f"{name}_steps") is not None:
        return args[f"{name}_steps"]
    return int((args.get(f"{name}_ratio") or 0) * max_steps)


def _warmed_up(anneal: Callable[..., float], *, holds: bool = False) -> Callable[..., float]:
    """Linear warmup, perhaps the base LR for a while, `anneal`, and `min_lr` after the last step."""

    def lr(step: int, base: float, args: Arguments, max_steps: int) -> float:
        warmup = _part(args, "warmup", max_steps)
        # without any hold NeMo has 0 here, not the end of warmup
        is_held = any(args.get(name) is not None for name in ("hold_steps", "hold_ratio"))
        hold_end = warmup + _part(args, "hold", max_steps) if holds and is_held else 0
        if warmup and step <= warmup:
            return base * (step + 1) / (warmup + 1)
        if warmup <= step < hold_end:
            return base
        if step > max_steps:
            return args.get("min_lr", 0.0)
        return anneal(step, base, args, max_steps, warmup, hold_end)

    return lr


def _cosine(step: int, base: float, args: Arguments, max_steps: int) -> float:
    constant, warmup = _part(args, "constant", max_steps), _part(args, "warmup", max_steps)
    low = args.get("min_lr", 0.0)
    if warmup and step <= warmup:  # with a constant end it is Megatron's, whose warmup begins at 0
        return base * step / warmup if constant else base * (step + 1) / (warmup + 1)
    if step > max_steps - constant:
        return low
    share = (step - warmup) / (max_steps - constant - warmup)
    return low + (base - low) * (1 + math.cos(math.pi * share)) / 2


def _noam(step: int, base: float, args: Arguments, max_steps: int) -> float:
    step, warmup = max(1, step), _part(args, "warmup", max_steps)
    rise = step * warmup**-1.5 if warmup else math.inf
    lr = base * args["d_model"] ** -0.5 * min(step**-0.5, rise)
    return max(lr, args.get("min_lr", 0.0)) if step > warmup else lr


def _noam_hold(step: int, base: float, args: Arguments, max_steps: int, warmup: int, hold_end: int) -> float:
    rate, hold = args.get("decay_rate", 0.5), max(0, hold_end - warmup)
    lr = base * max(1, warmup**rate) / max(1, (step - hold) ** rate)
    return max(lr, args.get("min_lr", 0.0))


def _poly_hold(step: int, base: float, args: Arguments, max_steps: int, warmup: int, hold_end: int) -> float:
    step, length, low = step - hold_end, max_steps - max(warmup, hold_end), args.get("min_lr", 0.0)
    if args.get("cycle"):
        length *= math.ceil(step / length) if step else 1
    share = step / length if args.get("cycle") else min(step, length) / length
    return low + (base - low) * (1 - share) ** args.get("power", 1.0)


def _sqrt(step: int, base: float, args: Arguments, max_steps: int, warmup: int, hold_end: int) -> float:
    return max(base * math.sqrt((max_steps - step) / max_steps), args.get("min_lr", 0.0))


def _inverse_sqrt(step: int, base: float, args: Arguments, max_steps: int, warmup: int, hold_end: int) -> float:
    return base / math.sqrt((step + 1) / (warmup + 1))


def _linear(step: int, base: float, args: Arguments, max_steps: int, warmup: int, hold_end: int) -> float:
    low = args.get("min_lr", 0.0)
    return low + (1 - (step - warmup) / (max_steps - warmup)) * (base - low)


# lr(step, base_lr, arguments, max_steps); the last two are torch's, ExponentialLR's step is an epoch in NeMo too
POLICIES: dict[str, Callable[[int, float, Arguments, int], float]] = {
    "CosineAnnealing": _cosine,
    "InverseSquareRootAnnealing": _warmed_up(_inverse_sqrt),
    "NoamAnnealing": _noam,
    "NoamHoldAnnealing": _warmed_up(_noam_hold, holds=True),
    "PolynomialHoldDecayAnnealing": _warmed_up(_poly_hold, holds=True),
    "SquareRootAnnealing": _warmed_up(_sqrt),
    "WarmupAnnealing": _warmed_up(_linear),
    "ExponentialLR": lambda step, base, args, max_steps: base * args["gamma"] ** step,
    "StepLR": lambda step, base, args, max_steps: base * args.get("gamma", 0.1) ** (step // args["step_size"]),
}
