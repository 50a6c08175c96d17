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

The formulas are in `formulas.py`, the arguments that most policies share at `PhasedLR` in `phased_lr.py`, all policies
side by side in docs/formulas.md.

Source: NeMo 3.0.0, nemo/core/optim/lr_scheduler.py. Deviations: each param group keeps its own base LR in every policy
(NeMo's WarmupAnnealing, and CosineAnnealing with `constant_steps`, give all groups the first group's); and what NeMo
meets in the middle of a run or not at all (phases that do not fit, `min_lr` above the base LR) is a ScheduleError here,
at construction.

OpenSeq2Seq's policies come from `openseq2seq_formulas.py`.
"""

from torch.optim import Optimizer

from lightning_novograd.lr_scheduler import formulas
from lightning_novograd.lr_scheduler.base import Phase, ScheduleError
from lightning_novograd.lr_scheduler.deeplearningexamples import WarmupHoldAnnealExponential
from lightning_novograd.lr_scheduler.openseq2seq import (
    CosineDecay,
    ExpDecay,
    InvPolyDecay,
    PiecewiseConstant,
    PolyDecay,
    TransformerPolicy,
)
from lightning_novograd.lr_scheduler.phases import PhasedLR, flag, number, spans, whole
from lightning_novograd.registry import register_scheduler

__all__ = [
    "CosineAnnealing",
    "CosineDecay",
    "ExpDecay",
    "InvPolyDecay",
    "InverseSquareRootAnnealing",
    "NoamAnnealing",
    "NoamHoldAnnealing",
    "PiecewiseConstant",
    "PolyDecay",
    "PolynomialDecayAnnealing",
    "PolynomialHoldDecayAnnealing",
    "SquareAnnealing",
    "SquareRootAnnealing",
    "T5InverseSquareRootAnnealing",
    "TransformerPolicy",
    "WarmupAnnealing",
    "WarmupHoldAnnealExponential",
    "WarmupHoldAnnealLinear",
    "WarmupHoldAnnealOneMinusSquareRoot",
    "WarmupHoldPolicy",
    "WarmupPolicy",
]


@register_scheduler("WarmupPolicy", aliases=["warmup"])
class WarmupPolicy(PhasedLR):
    """Linear warmup, then the base LR; `min_lr` after `max_steps`, None being a run without end."""

    formula = staticmethod(formulas.warmup)
    main_phase = "constant"

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        warmup_steps: int | None = None,
        warmup_ratio: float | None = None,
        max_steps: int | None = None,
        min_lr: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        warmup = warmup_steps, warmup_ratio
        super().__init__(optimizer, last_epoch, max_steps=max_steps, min_lr=min_lr, warmup=warmup, endless=True)


@register_scheduler("WarmupHoldPolicy")
class WarmupHoldPolicy(PhasedLR):
    """Linear warmup, hold, then the base LR still; `min_lr` after `max_steps`, which it needs."""

    formula = staticmethod(formulas.warmup_hold)
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
        warmup, hold = (warmup_steps, warmup_ratio), (hold_steps, hold_ratio)
        super().__init__(optimizer, last_epoch, max_steps=max_steps, min_lr=min_lr, warmup=warmup, hold=hold)


@register_scheduler("SquareAnnealing")
class SquareAnnealing(PhasedLR):
    """Warmup, then quadratic decay: `max(base * ((M-s) / (M-W))^2, min_lr)`; note NeMo's `min_lr` of 1e-5."""

    formula = staticmethod(formulas.square)

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_steps: int,
        warmup_steps: int | None = None,
        warmup_ratio: float | None = None,
        min_lr: float = 1e-5,
        last_epoch: int = -1,
    ) -> None:
        warmup = warmup_steps, warmup_ratio
        super().__init__(optimizer, last_epoch, max_steps=max_steps, min_lr=min_lr, warmup=warmup)


@register_scheduler("SquareRootAnnealing")
class SquareRootAnnealing(PhasedLR):
    """Warmup, then `max(base * sqrt((M-s) / M), min_lr)`, counted from step 0: the LR drops where warmup ends."""

    formula = staticmethod(formulas.square_root)

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_steps: int,
        warmup_steps: int | None = None,
        warmup_ratio: float | None = None,
        min_lr: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        warmup = warmup_steps, warmup_ratio
        super().__init__(optimizer, last_epoch, max_steps=max_steps, min_lr=min_lr, warmup=warmup)


@register_scheduler("CosineAnnealing", aliases=["cosine"])
class CosineAnnealing(PhasedLR):
    """Warmup, then half a cosine from the base LR to `min_lr`, then `min_lr` for `constant_steps`.

    `min_lr + (base-min_lr)/2 * (1 + cos(pi * (s-W) / (M-C-W)))`

    With `constant_steps` (or `constant_ratio` of `max_steps`), `C`, the warmup is Megatron's: `base * s/W`, from an LR
    of 0, and `min_lr` must be below the base LR.
    """

    formula = staticmethod(formulas.cosine)

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
class NoamAnnealing(PhasedLR):
    """The Transformer's schedule: linear warmup, then `base * sqrt(1 / (d_model * s))`; never ends.

    `base * d_model^-0.5 * min(t^-0.5, t * W^-1.5)`, `t = max(1, s)`; the floor `min_lr` holds after warmup only.
    The base LR is a factor, not the peak, which is `base / sqrt(d_model * W)`. `max_steps` serves `warmup_ratio` only.

    Args:
        optimizer: whose LR to set.
        d_model: width of the model, at least 1.

    Source: Vaswani et al., section 5.3, https://arxiv.org/abs/1706.03762.

    """

    formula = staticmethod(formulas.noam)

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        d_model: int,
        warmup_steps: int | None = None,
        warmup_ratio: float | None = None,
        max_steps: int | None = None,
        min_lr: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        super().__init__(
            optimizer,
            last_epoch,
            max_steps=max_steps,
            min_lr=min_lr,
            warmup=(warmup_steps, warmup_ratio),
            endless=True,
            d_model=whole("d_model", d_model, low=1),
        )


@register_scheduler("NoamHoldAnnealing")
class NoamHoldAnnealing(PhasedLR):
    """Warmup, which it needs, hold, then `max(base * (W / (s-h))^decay_rate, min_lr)`, `h` the hold's length.

    `min_lr` after `max_steps`, by default a drop to 0.

    Args:
        optimizer: whose LR to set.
        decay_rate: exponent, at least 0; 0.5 is Noam's decay, 1 Squeezeformer's.

    Source: Kim et al., "Squeezeformer", https://arxiv.org/abs/2206.00888.

    """

    formula = staticmethod(formulas.noam_hold)
    needs_warmup = True

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_steps: int,
        warmup_steps: int | None = None,
        warmup_ratio: float | None = None,
        hold_steps: int | None = None,
        hold_ratio: float | None = None,
        decay_rate: float = 0.5,
        min_lr: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        super().__init__(
            optimizer,
            last_epoch,
            max_steps=max_steps,
            min_lr=min_lr,
            warmup=(warmup_steps, warmup_ratio),
            hold=(hold_steps, hold_ratio),
            decay_rate=number("decay_rate", decay_rate, low=0.0),
        )


@register_scheduler("WarmupHoldAnnealOneMinusSquareRoot")
class WarmupHoldAnnealOneMinusSquareRoot(PhasedLR):
    """Warmup, hold, then `max(base * (1 - sqrt((s-H) / (M-H))), min_lr)`; without hold, `H` is 0 (as in NeMo)."""

    formula = staticmethod(formulas.hold_one_minus_square_root)

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_steps: int,
        warmup_steps: int | None = None,
        warmup_ratio: float | None = None,
        hold_steps: int | None = None,
        hold_ratio: float | None = None,
        min_lr: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        warmup, hold = (warmup_steps, warmup_ratio), (hold_steps, hold_ratio)
        super().__init__(optimizer, last_epoch, max_steps=max_steps, min_lr=min_lr, warmup=warmup, hold=hold)


@register_scheduler("WarmupHoldAnnealLinear")
class WarmupHoldAnnealLinear(PhasedLR):
    """Warmup, hold, then `base - (base-min_lr) * (s-H) / (M-H)`; without hold, `H` is 0 (as in NeMo)."""

    formula = staticmethod(formulas.hold_linear)

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_steps: int,
        warmup_steps: int | None = None,
        warmup_ratio: float | None = None,
        hold_steps: int | None = None,
        hold_ratio: float | None = None,
        min_lr: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        warmup, hold = (warmup_steps, warmup_ratio), (hold_steps, hold_ratio)
        super().__init__(optimizer, last_epoch, max_steps=max_steps, min_lr=min_lr, warmup=warmup, hold=hold)


@register_scheduler("WarmupAnnealing")
class WarmupAnnealing(PhasedLR):
    """Warmup, then linear decay to `min_lr`: `min_lr + (base-min_lr) * (1 - (s-W) / (M-W))`."""

    formula = staticmethod(formulas.linear)

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_steps: int,
        warmup_steps: int | None = None,
        warmup_ratio: float | None = None,
        min_lr: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        warmup = warmup_steps, warmup_ratio
        super().__init__(optimizer, last_epoch, max_steps=max_steps, min_lr=min_lr, warmup=warmup)


@register_scheduler("InverseSquareRootAnnealing")
class InverseSquareRootAnnealing(PhasedLR):
    """Warmup, then `base / sqrt((s+1) / (W+1))`; `min_lr` is the LR after `max_steps` and no floor before.

    `max_steps=None` is a run without end.
    """

    formula = staticmethod(formulas.inverse_square_root)

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_steps: int | None,
        warmup_steps: int | None = None,
        warmup_ratio: float | None = None,
        min_lr: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        warmup = warmup_steps, warmup_ratio
        super().__init__(optimizer, last_epoch, max_steps=max_steps, min_lr=min_lr, warmup=warmup, endless=True)


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

    formula = staticmethod(formulas.t5_inverse_square_root)

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
class PolynomialDecayAnnealing(PhasedLR):
    """Warmup, then `(base-min_lr) * (1 - (s-W) / (M-W))^power + min_lr`.

    Args:
        optimizer: whose LR to set.
        power: exponent, at least 0.
        cycle: accepted for NeMo's sake; restarts would begin after `max_steps`, where the LR is `min_lr`.

    """

    formula = staticmethod(formulas.polynomial)

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_steps: int,
        warmup_steps: int | None = None,
        warmup_ratio: float | None = None,
        min_lr: float = 0.0,
        power: float = 1.0,
        cycle: bool = False,
        last_epoch: int = -1,
    ) -> None:
        super().__init__(
            optimizer,
            last_epoch,
            max_steps=max_steps,
            min_lr=min_lr,
            warmup=(warmup_steps, warmup_ratio),
            power=number("power", power, low=0.0),
            cycle=flag("cycle", cycle),
        )


@register_scheduler("PolynomialHoldDecayAnnealing")
class PolynomialHoldDecayAnnealing(PhasedLR):
    """Warmup, hold, then `(base-min_lr) * (1 - (s-H)/D)^power + min_lr`, `D = M - max(W, H)`.

    Without hold, `H` is 0 (as in NeMo): the LR drops where warmup ends and reaches `min_lr` `W` steps before the end.

    Args:
        optimizer: whose LR to set.
        power: exponent, at least 0.
        cycle: restart when the decay has ended before `max_steps`, which happens only with warmup and no hold.

    """

    formula = staticmethod(formulas.hold_polynomial)

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_steps: int,
        warmup_steps: int | None = None,
        warmup_ratio: float | None = None,
        hold_steps: int | None = None,
        hold_ratio: float | None = None,
        min_lr: float = 0.0,
        power: float = 1.0,
        cycle: bool = False,
        last_epoch: int = -1,
    ) -> None:
        super().__init__(
            optimizer,
            last_epoch,
            max_steps=max_steps,
            min_lr=min_lr,
            warmup=(warmup_steps, warmup_ratio),
            hold=(hold_steps, hold_ratio),
            power=number("power", power, low=0.0),
            cycle=flag("cycle", cycle),
        )
