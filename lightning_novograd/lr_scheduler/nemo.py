"""Learning-rate policies under NeMo's names, arguments and values, as torch LRSchedulers.

>>> import torch
>>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
>>> schedule = CosineAnnealing(optimizer, max_steps=100, warmup_steps=9)
>>> for _ in range(9):
...     optimizer.step()
...     schedule.step()
>>> schedule.get_last_lr()
[0.1]
>>> schedule.phases()
[Phase(name='warmup', first_step=0, last_step=9), Phase(name='anneal', first_step=10, last_step=100)]

`PhasedLR` in `phases.py` has the symbols, the LR outside annealing and the arguments that most policies share;
docs/schedules.md has all policies side by side.

Source: NeMo 3.0.0, nemo/core/optim/lr_scheduler.py. Deviations: each param group keeps its own base LR in every policy
(NeMo's WarmupAnnealing, and CosineAnnealing with `constant_steps`, give all groups the first group's); and what NeMo
meets in the middle of a run or not at all (phases that do not fit, `min_lr` above the base LR) is a ScheduleError here,
at construction.
"""

import math
from typing import Any

from torch.optim import Optimizer

from lightning_novograd.lr_scheduler.base import Phase, ScheduleError
from lightning_novograd.lr_scheduler.phases import (
    EndlessWarmupLR,
    PhasedLR,
    Unpack,
    Warmup,
    WarmupHold,
    WarmupHoldLR,
    WarmupLR,
    flag,
    number,
    phased,
    spans,
    whole,
)
from lightning_novograd.registry import register_scheduler


@register_scheduler("WarmupPolicy", aliases=["warmup"])
class WarmupPolicy(EndlessWarmupLR):
    """Linear warmup, then the base LR; `min_lr` after `max_steps`, None being a run without end."""

    main_phase = "constant"


@register_scheduler("WarmupHoldPolicy")
class WarmupHoldPolicy(PhasedLR):
    """Linear warmup, hold, then the base LR still; `min_lr` after `max_steps`, which it needs."""

    main_phase = "constant"

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        warmup_steps: int | None = None,
        warmup_ratio: float | None = None,
        hold_steps: int | None = None,
        hold_ratio: float | None = None,
        max_steps: int | None = None,
        min_lr: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        # max_steps has a default, as in NeMo, and is refused without a value
        warmup, hold = (warmup_steps, warmup_ratio), (hold_steps, hold_ratio)
        super().__init__(optimizer, last_epoch, max_steps=max_steps, min_lr=min_lr, warmup=warmup, hold=hold)


@register_scheduler("SquareAnnealing")
class SquareAnnealing(WarmupLR):
    """Warmup, then quadratic decay: `max(base * ((M-s) / (M-W))^2, min_lr)`; note NeMo's `min_lr` of 1e-5."""

    @staticmethod
    def annealing(step: int, base_lr: float, *, max_steps: int, warmup_steps: int, min_lr: float, **_: Any) -> float:
        """`max(base * ((M-s) / (M-W))^2, min_lr)`."""
        return max(base_lr * ((max_steps - step) / (max_steps - warmup_steps)) ** 2, min_lr)

    def __init__(self, optimizer: Optimizer, *, max_steps: int, min_lr: float = 1e-5, **warmup: Unpack[Warmup]) -> None:
        super().__init__(optimizer, max_steps=max_steps, min_lr=min_lr, **warmup)


@register_scheduler("SquareRootAnnealing")
class SquareRootAnnealing(WarmupLR):
    """Warmup, then `max(base * sqrt((M-s) / M), min_lr)`, counted from step 0: the LR drops where warmup ends."""

    @staticmethod
    def annealing(step: int, base_lr: float, *, max_steps: int, min_lr: float, **_: Any) -> float:
        """`max(base * sqrt((M-s) / M), min_lr)`."""
        return max(base_lr * math.sqrt((max_steps - step) / max_steps), min_lr)


@register_scheduler("CosineAnnealing", aliases=["cosine"])
class CosineAnnealing(PhasedLR):
    """Warmup, then half a cosine from the base LR to `min_lr`, then `min_lr` for `constant_steps`.

    `min_lr + (base-min_lr)/2 * (1 + cos(pi * (s-W) / (M-C-W)))`

    With `constant_steps` (or `constant_ratio` of `max_steps`), `C`, the warmup is Megatron's: `base * s/W`, from an LR
    of 0, and `min_lr` must be below the base LR.
    """

    @staticmethod
    def annealing(step: int, base_lr: float, *, max_steps: int, warmup_steps: int, min_lr: float, **_: Any) -> float:
        """`min_lr + (base-min_lr)/2 * (1 + cos(pi * (s-W) / (M-W)))`."""
        decay_steps = max_steps - warmup_steps
        return min_lr + (base_lr - min_lr) * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / decay_steps))

    @classmethod
    def formula(
        cls,
        step: int,
        base_lr: float,
        *,
        max_steps: int,
        warmup_steps: int = 0,
        constant_steps: int = 0,
        min_lr: float = 0.0,
    ) -> float:
        """With `C` constant steps the schedule is one of `M-C` steps, but for Megatron's warmup."""
        if constant_steps > 0 and warmup_steps > 0 and step <= warmup_steps:
            return base_lr * (step / warmup_steps)
        end = max_steps - constant_steps
        return phased(cls.annealing, step, base_lr, max_steps=end, warmup_steps=warmup_steps, min_lr=min_lr)

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_steps: int,
        warmup_steps: int | None = None,
        warmup_ratio: float | None = None,
        constant_steps: int | None = None,
        constant_ratio: float | None = None,
        min_lr: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        warmup, constant = (warmup_steps, warmup_ratio), (constant_steps, constant_ratio)
        super().__init__(optimizer, last_epoch, max_steps=max_steps, min_lr=min_lr, warmup=warmup, constant=constant)

    def check_base_lr(self, index: int, base_lr: float) -> None:
        """Refuse a base LR below `min_lr`, and with `constant_steps` also one that equals it, as NeMo does."""
        super().check_base_lr(index, base_lr)
        if self.arguments["constant_steps"] > 0 and base_lr == self.arguments["min_lr"]:
            raise ScheduleError("min_lr", f"{base_lr} is the learning rate of param group {index}; must be below it")


@register_scheduler("NoamAnnealing")
class NoamAnnealing(EndlessWarmupLR):
    """The Transformer's schedule: linear warmup, then `base * sqrt(1 / (d_model * s))`; never ends.

    `base * d_model^-0.5 * min(t^-0.5, t * W^-1.5)`, `t = max(1, s)`; the floor `min_lr` holds after warmup only.
    The base LR is a factor, not the peak, which is `base / sqrt(d_model * W)`. `max_steps` serves `warmup_ratio` only.

    Args:
        optimizer: whose LR to set.
        d_model: width of the model, at least 1.

    Source: Vaswani et al., section 5.3, https://arxiv.org/abs/1706.03762.

    """

    @staticmethod
    def formula(
        step: int, base_lr: float, *, d_model: int, warmup_steps: int = 0, min_lr: float = 0.0, **_: Any
    ) -> float:
        """`base * d_model^-0.5 * min(t^-0.5, t * W^-1.5)`, `t = max(1, s)`; at least `min_lr` once `t > W`."""
        t = max(1, step)
        shape = t**-0.5 if warmup_steps == 0 else min(t**-0.5, t * warmup_steps**-1.5)
        lr = base_lr * d_model**-0.5 * shape
        return max(lr, min_lr) if t > warmup_steps else lr

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        d_model: int,
        max_steps: int | None = None,
        min_lr: float = 0.0,
        **warmup: Unpack[Warmup],
    ) -> None:
        self.arguments = {"d_model": whole("d_model", d_model, low=1)}
        super().__init__(optimizer, max_steps=max_steps, min_lr=min_lr, **warmup)


@register_scheduler("NoamHoldAnnealing")
class NoamHoldAnnealing(WarmupHoldLR):
    """Warmup, which it needs, hold, then `max(base * (W / (s-h))^decay_rate, min_lr)`, `h` the hold's length.

    `min_lr` after `max_steps`, by default a drop to 0.

    Args:
        optimizer: whose LR to set.
        decay_rate: exponent, at least 0; 0.5 is Noam's decay, 1 Squeezeformer's.

    Source: Kim et al., "Squeezeformer", https://arxiv.org/abs/2206.00888.

    """

    needs_warmup = True

    @staticmethod
    def annealing(
        step: int, base_lr: float, *, warmup_steps: int, hold_steps: int, decay_rate: float, min_lr: float, **_: Any
    ) -> float:
        """`max(base * (W / (s-h))^p, min_lr)`, `p = decay_rate`.

        NeMo's `max(1, W^p) / max(1, (s-h)^p)`, but the quotient cannot overflow: here `s-h >= W >= 1`.
        """
        return max(base_lr * (warmup_steps / (step - hold_steps)) ** decay_rate, min_lr)

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_steps: int,
        decay_rate: float = 0.5,
        min_lr: float = 0.0,
        **phases: Unpack[WarmupHold],
    ) -> None:
        self.arguments = {"decay_rate": number("decay_rate", decay_rate, low=0.0)}
        super().__init__(optimizer, max_steps=max_steps, min_lr=min_lr, **phases)


@register_scheduler("WarmupHoldAnnealOneMinusSquareRoot")
class WarmupHoldAnnealOneMinusSquareRoot(WarmupHoldLR):
    """Warmup, hold, then `max(base * (1 - sqrt((s-H) / (M-H))), min_lr)`; without hold, `H` is 0 (as in NeMo)."""

    @staticmethod
    def annealing(step: int, base_lr: float, *, max_steps: int, hold_end: int, min_lr: float, **_: Any) -> float:
        """`max(base * (1 - sqrt((s-H) / (M-H))), min_lr)`."""
        return max(base_lr * (1 - math.sqrt((step - hold_end) / (max_steps - hold_end))), min_lr)


@register_scheduler("WarmupHoldAnnealLinear")
class WarmupHoldAnnealLinear(WarmupHoldLR):
    """Warmup, hold, then `base - (base-min_lr) * (s-H) / (M-H)`; without hold, `H` is 0 (as in NeMo)."""

    @staticmethod
    def annealing(step: int, base_lr: float, *, max_steps: int, hold_end: int, min_lr: float, **_: Any) -> float:
        """`base - (base-min_lr) * (s-H) / (M-H)`."""
        return base_lr - (base_lr - min_lr) * ((step - hold_end) / (max_steps - hold_end))


@register_scheduler("WarmupAnnealing")
class WarmupAnnealing(WarmupLR):
    """Warmup, then linear decay to `min_lr`: `min_lr + (base-min_lr) * (1 - (s-W) / (M-W))`."""

    @staticmethod
    def annealing(step: int, base_lr: float, *, max_steps: int, warmup_steps: int, min_lr: float, **_: Any) -> float:
        """`min_lr + (base-min_lr) * (1 - (s-W) / (M-W))`."""
        return min_lr + (1 - (step - warmup_steps) / (max_steps - warmup_steps)) * (base_lr - min_lr)


@register_scheduler("InverseSquareRootAnnealing")
class InverseSquareRootAnnealing(EndlessWarmupLR):
    """Warmup, then `base / sqrt((s+1) / (W+1))`; `min_lr` is the LR after `max_steps` and no floor before.

    `max_steps=None` is a run without end.
    """

    @staticmethod
    def annealing(step: int, base_lr: float, *, warmup_steps: int, **_: Any) -> float:
        """`base / sqrt((s+1) / (W+1))`."""
        return base_lr / math.sqrt((step + 1) / (warmup_steps + 1))

    def __init__(
        self, optimizer: Optimizer, *, max_steps: int | None, min_lr: float = 0.0, **warmup: Unpack[Warmup]
    ) -> None:
        super().__init__(optimizer, max_steps=max_steps, min_lr=min_lr, **warmup)


@register_scheduler("T5InverseSquareRootAnnealing")
class T5InverseSquareRootAnnealing(PhasedLR):
    """T5's schedule `1 / sqrt(max(s, C))`, an absolute LR: the optimizer's `lr` is not used.

    `min_lr` is the LR after `max_steps` and no floor before.

    Args:
        optimizer: whose LR to set.
        constant_steps: `C`, the first steps, in which the LR is constant, at least 1. (NeMo's `constant_ratio` always
            fails there and does not exist here.)

    Source: Raffel et al., section 3.1.2, https://arxiv.org/abs/1910.10683.

    """

    uses_base_lr = False

    @staticmethod
    def formula(step: int, base_lr: float, *, max_steps: int, constant_steps: int, min_lr: float = 0.0) -> float:
        """`1 / sqrt(max(s, C))`, whatever the base LR; `min_lr` after `M`."""
        return min_lr if step > max_steps else 1 / math.sqrt(max(step, constant_steps))

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_steps: int,
        constant_steps: int,
        min_lr: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        if whole("constant_steps", constant_steps, low=1) > whole("max_steps", max_steps, low=1):
            raise ScheduleError("constant_steps", f"{constant_steps} is more than max_steps={max_steps}")
        super().__init__(optimizer, last_epoch, max_steps=max_steps, min_lr=min_lr, constant_steps=int(constant_steps))

    def check_base_lr(self, index: int, base_lr: float) -> None:
        """Any base LR will do, since it is not used."""

    def phases(self) -> list[Phase]:
        """The constant start and the decay."""
        return spans([("constant", 0), ("anneal", self.arguments["constant_steps"] + 1)], self.arguments["max_steps"])


@register_scheduler("PolynomialDecayAnnealing", aliases=["polynomial"])
class PolynomialDecayAnnealing(WarmupLR):
    """Warmup, then `(base-min_lr) * (1 - (s-W) / (M-W))^power + min_lr`.

    Args:
        optimizer: whose LR to set.
        power: exponent, at least 0.
        cycle: accepted for NeMo's sake; restarts would begin after `max_steps`, where the LR is `min_lr`.

    """

    @staticmethod
    def annealing(step: int, base_lr: float, *, max_steps: int, warmup_steps: int, **shape: Any) -> float:
        """`(base-min_lr) * (1 - (s-W)/D)^power + min_lr`, `D = M-W`.

        `cycle` multiplies `D` by `ceil((s-W)/D)`, which is 1 for every step up to `M`: it changes nothing here.
        """
        return _polynomial(step - warmup_steps, max_steps - warmup_steps, base_lr, **shape)

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_steps: int,
        min_lr: float = 0.0,
        power: float = 1.0,
        cycle: bool = False,
        **warmup: Unpack[Warmup],
    ) -> None:
        self.arguments = {"power": number("power", power, low=0.0), "cycle": flag("cycle", cycle)}
        super().__init__(optimizer, max_steps=max_steps, min_lr=min_lr, **warmup)


@register_scheduler("PolynomialHoldDecayAnnealing")
class PolynomialHoldDecayAnnealing(WarmupHoldLR):
    """Warmup, hold, then `(base-min_lr) * (1 - (s-H)/D)^power + min_lr`, `D = M - max(W, H)`.

    Without hold, `H` is 0 (as in NeMo): the LR drops where warmup ends and reaches `min_lr` `W` steps before the end.

    Args:
        optimizer: whose LR to set.
        power: exponent, at least 0.
        cycle: restart when the decay has ended before `max_steps`, which happens only with warmup and no hold.

    """

    @staticmethod
    def annealing(
        step: int, base_lr: float, *, max_steps: int, warmup_steps: int, hold_end: int, **shape: Any
    ) -> float:
        """`(base-min_lr) * (1 - min((s-H)/D, 1))^power + min_lr`; `cycle` multiplies `D` by `ceil((s-H)/D)`."""
        return _polynomial(step - hold_end, max_steps - max(warmup_steps, hold_end), base_lr, **shape)

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_steps: int,
        min_lr: float = 0.0,
        power: float = 1.0,
        cycle: bool = False,
        **phases: Unpack[WarmupHold],
    ) -> None:
        self.arguments = {"power": number("power", power, low=0.0), "cycle": flag("cycle", cycle)}
        super().__init__(optimizer, max_steps=max_steps, min_lr=min_lr, **phases)


def _polynomial(
    step: int, decay_steps: int, base_lr: float, *, min_lr: float, power: float, cycle: bool, **_: Any
) -> float:
    if cycle and step > 0:
        decay_steps *= math.ceil(step / decay_steps)
    progress = min(step / decay_steps, 1.0)
    return (base_lr - min_lr) * (1 - progress) ** power + min_lr
