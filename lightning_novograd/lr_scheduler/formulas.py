r"""NeMo's learning-rate policies as pure functions: optimizer step -> learning rate.

Each is one closed form, so the LR of a step does not depend on how the run got there. Symbols: `s` step, counted from 0
(the LR that optimizer step `s` sees), `W` = `warmup_steps`, `M` = `max_steps`, `H` the end of the hold phase
(`W + hold_steps`; 0 where `hold_steps` is None, as in NeMo, even with warmup).

Phases, in this order: warmup `base * (s+1) / (W+1)` for `s <= W` if `W > 0` (the base LR is reached at `s = W`);
hold `base` for `W <= s < H`; `min_lr` for `s > M`; else the formula given at the function.

Values equal NeMo 3.0.0's. The functions take what the classes in `lr_scheduler.py` have checked and resolved (ratios to
steps), and check nothing themselves.
"""

import math


def _outside_annealing(
    step: int,
    base_lr: float,
    max_steps: int | None,
    min_lr: float,
    warmup_steps: int,
    hold_steps: int | None = None,
) -> float | None:
    """The LR of a step in warmup, in hold or after `max_steps`; None while the policy's own formula holds."""
    if warmup_steps > 0 and step <= warmup_steps:
        return base_lr * ((step + 1) / (warmup_steps + 1))
    if step < _hold_end(warmup_steps, hold_steps):
        return base_lr
    if max_steps is not None and step > max_steps:
        return min_lr
    return None


def _hold_end(warmup_steps: int, hold_steps: int | None) -> int:
    return 0 if hold_steps is None else warmup_steps + hold_steps


def _polynomial(step: int, base_lr: float, decay_steps: int, min_lr: float, power: float, cycle: bool) -> float:
    if cycle and step > 0:
        decay_steps *= math.ceil(step / decay_steps)
    progress = min(step / decay_steps, 1.0)
    return (base_lr - min_lr) * (1 - progress) ** power + min_lr


def warmup(
    step: int, base_lr: float, *, max_steps: int | None = None, warmup_steps: int = 0, min_lr: float = 0.0
) -> float:
    """`base`."""
    lr = _outside_annealing(step, base_lr, max_steps, min_lr, warmup_steps)
    return base_lr if lr is None else lr


def warmup_hold(
    step: int,
    base_lr: float,
    *,
    max_steps: int,
    warmup_steps: int = 0,
    hold_steps: int | None = None,
    min_lr: float = 0.0,
) -> float:
    """`base`."""
    lr = _outside_annealing(step, base_lr, max_steps, min_lr, warmup_steps, hold_steps)
    return base_lr if lr is None else lr


def square(step: int, base_lr: float, *, max_steps: int, warmup_steps: int = 0, min_lr: float = 1e-5) -> float:
    """`max(base * ((M-s) / (M-W))^2, min_lr)`."""
    lr = _outside_annealing(step, base_lr, max_steps, min_lr, warmup_steps)
    if lr is not None:
        return lr
    return max(base_lr * ((max_steps - step) / (max_steps - warmup_steps)) ** 2, min_lr)


def square_root(step: int, base_lr: float, *, max_steps: int, warmup_steps: int = 0, min_lr: float = 0.0) -> float:
    """`max(base * sqrt((M-s) / M), min_lr)`; the decay counts from step 0, so the LR drops where warmup ends."""
    lr = _outside_annealing(step, base_lr, max_steps, min_lr, warmup_steps)
    if lr is not None:
        return lr
    return max(base_lr * math.sqrt((max_steps - step) / max_steps), min_lr)


def cosine(
    step: int,
    base_lr: float,
    *,
    max_steps: int,
    warmup_steps: int = 0,
    constant_steps: int = 0,
    min_lr: float = 0.0,
) -> float:
    """`min_lr + (base-min_lr)/2 * (1 + cos(pi * (s-W) / (M-C-W)))`, then `min_lr` for `C = constant_steps` steps.

    With `C > 0` warmup is Megatron's: `base * s / W`, from an LR of 0.
    """
    decay_steps = max_steps - constant_steps - warmup_steps
    if constant_steps > 0:
        if warmup_steps > 0 and step <= warmup_steps:
            return base_lr * (step / warmup_steps)
        if step > warmup_steps + decay_steps:
            return min_lr
    else:
        lr = _outside_annealing(step, base_lr, max_steps, min_lr, warmup_steps)
        if lr is not None:
            return lr
    return min_lr + (base_lr - min_lr) * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / decay_steps))


def noam(
    step: int,
    base_lr: float,
    *,
    d_model: int,
    max_steps: int | None = None,
    warmup_steps: int = 0,
    min_lr: float = 0.0,
) -> float:
    """`base * d_model^-0.5 * min(t^-0.5, t * W^-1.5)` with `t = max(1, s)`; at least `min_lr` once `t > W`.

    It has no end: `max_steps` changes nothing.
    """
    t = max(1, step)
    shape = t**-0.5 if warmup_steps == 0 else min(t**-0.5, t * warmup_steps**-1.5)
    lr = base_lr * d_model**-0.5 * shape
    return max(lr, min_lr) if t > warmup_steps else lr


def noam_hold(
    step: int,
    base_lr: float,
    *,
    max_steps: int,
    warmup_steps: int,
    hold_steps: int | None = None,
    decay_rate: float = 0.5,
    min_lr: float = 0.0,
) -> float:
    """`max(base * (W / (s-h))^p, min_lr)`, `h` the length of the hold phase, `p = decay_rate`.

    NeMo's `max(1, W^p) / max(1, (s-h)^p)`, but the quotient cannot overflow: here `s-h >= W >= 1`.
    """
    lr = _outside_annealing(step, base_lr, max_steps, min_lr, warmup_steps, hold_steps)
    if lr is not None:
        return lr
    return max(base_lr * (warmup_steps / (step - (hold_steps or 0))) ** decay_rate, min_lr)


def hold_one_minus_square_root(
    step: int,
    base_lr: float,
    *,
    max_steps: int,
    warmup_steps: int = 0,
    hold_steps: int | None = None,
    min_lr: float = 0.0,
) -> float:
    """`max(base * (1 - sqrt((s-H) / (M-H))), min_lr)`."""
    lr = _outside_annealing(step, base_lr, max_steps, min_lr, warmup_steps, hold_steps)
    if lr is not None:
        return lr
    hold_end = _hold_end(warmup_steps, hold_steps)
    return max(base_lr * (1 - math.sqrt((step - hold_end) / (max_steps - hold_end))), min_lr)


def hold_linear(
    step: int,
    base_lr: float,
    *,
    max_steps: int,
    warmup_steps: int = 0,
    hold_steps: int | None = None,
    min_lr: float = 0.0,
) -> float:
    """`base - (base-min_lr) * (s-H) / (M-H)`."""
    lr = _outside_annealing(step, base_lr, max_steps, min_lr, warmup_steps, hold_steps)
    if lr is not None:
        return lr
    hold_end = _hold_end(warmup_steps, hold_steps)
    return base_lr - (base_lr - min_lr) * ((step - hold_end) / (max_steps - hold_end))


def linear(step: int, base_lr: float, *, max_steps: int, warmup_steps: int = 0, min_lr: float = 0.0) -> float:
    """`min_lr + (base-min_lr) * (1 - (s-W) / (M-W))`."""
    lr = _outside_annealing(step, base_lr, max_steps, min_lr, warmup_steps)
    if lr is not None:
        return lr
    return min_lr + (1 - (step - warmup_steps) / (max_steps - warmup_steps)) * (base_lr - min_lr)


def inverse_square_root(
    step: int, base_lr: float, *, max_steps: int | None, warmup_steps: int = 0, min_lr: float = 0.0
) -> float:
    """`base / sqrt((s+1) / (W+1))`; not floored by `min_lr`, which is the LR after `M` only."""
    lr = _outside_annealing(step, base_lr, max_steps, min_lr, warmup_steps)
    return base_lr / math.sqrt((step + 1) / (warmup_steps + 1)) if lr is None else lr


def t5_inverse_square_root(
    step: int, base_lr: float, *, max_steps: int, constant_steps: int, min_lr: float = 0.0
) -> float:
    """`1 / sqrt(max(s, C))`, `C = constant_steps`, whatever the base LR; `min_lr` after `M`."""
    return min_lr if step > max_steps else 1 / math.sqrt(max(step, constant_steps))


def polynomial(
    step: int,
    base_lr: float,
    *,
    max_steps: int,
    warmup_steps: int = 0,
    min_lr: float = 0.0,
    power: float = 1.0,
    cycle: bool = False,
) -> float:
    """`(base-min_lr) * (1 - (s-W)/D)^power + min_lr`, `D = M-W`.

    `cycle` multiplies `D` by `ceil((s-W)/D)`, which is 1 for every step up to `M`: it changes nothing here.
    """
    lr = _outside_annealing(step, base_lr, max_steps, min_lr, warmup_steps)
    if lr is not None:
        return lr
    return _polynomial(step - warmup_steps, base_lr, max_steps - warmup_steps, min_lr, power, cycle)


def hold_polynomial(
    step: int,
    base_lr: float,
    *,
    max_steps: int,
    warmup_steps: int = 0,
    hold_steps: int | None = None,
    min_lr: float = 0.0,
    power: float = 1.0,
    cycle: bool = False,
) -> float:
    """`(base-min_lr) * (1 - min((s-H)/D, 1))^power + min_lr`, `D = M - max(W, H)`; `cycle`: `D *= ceil((s-H)/D)`."""
    lr = _outside_annealing(step, base_lr, max_steps, min_lr, warmup_steps, hold_steps)
    if lr is not None:
        return lr
    hold_end = _hold_end(warmup_steps, hold_steps)
    return _polynomial(step - hold_end, base_lr, max_steps - max(warmup_steps, hold_end), min_lr, power, cycle)
