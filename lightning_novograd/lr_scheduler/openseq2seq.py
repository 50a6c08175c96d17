"""OpenSeq2Seq's learning-rate policies, for recipes that come from there; formulas and torch classes.

They differ from NeMo's in that warmup starts from an LR of 0 at step 0 (`w = base * min(1, s/W)`), that it multiplies a
decay which may already run (`begin_decay_at` < `warmup_steps`), and that CosineDecay's floor is a share of the LR.
`fixed_lr` is WarmupPolicy without arguments.

Argument names are OpenSeq2Seq's, except `min_lr_ratio`. Its `learning_rate` is the optimizer's `lr`.

Source: OpenSeq2Seq 8681d381, open_seq2seq/optimizers/lr_policies.py, which computes in float32.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence

from torch.optim import Optimizer

from lightning_novograd.lr_scheduler.base import ClosedFormLR, Phase, ScheduleError
from lightning_novograd.lr_scheduler.phases import flag, number, spans, whole
from lightning_novograd.registry import register_scheduler


def _warmup(step: int, base_lr: float, warmup_steps: int) -> float:
    return base_lr * (step / warmup_steps) if step < warmup_steps else base_lr


@register_scheduler("PiecewiseConstant", aliases=["piecewise_constant"])
class PiecewiseConstant(ClosedFormLR):
    """The base LR times `decay_rates[i]` after step `boundaries[i]`.

    Unlike torch's MultiStepLR the new LR begins one step after the boundary, and the rates do not multiply up.

    Args:
        optimizer: whose LR to set.
        boundaries: last steps of each stretch, rising.
        decay_rates: factors of the base LR after each boundary, at least 0.
        steps_per_epoch: if given, boundaries count epochs of this many optimizer steps.
        last_epoch: step to continue from, -1 for a new run.

    """

    @staticmethod
    def formula(step: int, base_lr: float, *, boundaries: list[int], decay_rates: list[float]) -> float:
        """`base * decay_rates[i]` for `boundaries[i] < s <= boundaries[i+1]`, `base` up to the first boundary."""
        index = bisect_left(boundaries, step)
        return base_lr if index == 0 else base_lr * decay_rates[index - 1]

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        boundaries: Sequence[int],
        decay_rates: Sequence[float],
        steps_per_epoch: int | None = None,
        last_epoch: int = -1,
    ) -> None:
        unit = 1 if steps_per_epoch is None else whole("steps_per_epoch", steps_per_epoch, low=1)
        steps = [unit * whole("boundaries", boundary, low=0) for boundary in boundaries]
        if sorted(set(steps)) != steps:
            raise ScheduleError("boundaries", f"{list(boundaries)} do not rise")
        rates = [number("decay_rates", rate, low=0.0) for rate in decay_rates]
        if len(rates) != len(steps):
            raise ScheduleError("decay_rates", f"{len(rates)} rates for {len(steps)} boundaries; must be as many")
        super().__init__(optimizer, last_epoch=last_epoch, boundaries=steps, decay_rates=rates)

    def phases(self) -> list[Phase]:
        """One phase per rate, the last without end."""
        rates, boundaries = self.arguments["decay_rates"], self.arguments["boundaries"]
        starts = [(f"x {rate:g}", last + 1) for rate, last in zip(rates, boundaries, strict=True)]
        return spans([("x 1", 0), *starts], None)


@register_scheduler("ExpDecay", aliases=["exp_decay"])
class ExpDecay(ClosedFormLR):
    """Exponential decay: `max(base * decay_rate^((s-begin_decay_at) / decay_steps), min_lr)`.

    Args:
        optimizer: whose LR to set.
        decay_steps: steps in which the LR falls by the factor `decay_rate`, at least 1.
        decay_rate: factor, 0..1.
        use_staircase_decay: fall at once every `decay_steps` instead of gradually.
        begin_decay_at: steps at the base LR before.
        min_lr: floor, an absolute LR.
        last_epoch: step to continue from, -1 for a new run.

    """

    @staticmethod
    def formula(
        step: int,
        base_lr: float,
        *,
        decay_steps: int,
        decay_rate: float,
        use_staircase_decay: bool,
        begin_decay_at: int = 0,
        min_lr: float = 0.0,
    ) -> float:
        """`max(base * decay_rate^(max(0, s-begin) / decay_steps), min_lr)`; a staircase rounds the exponent down."""
        periods = max(0, step - begin_decay_at) / decay_steps
        return max(base_lr * decay_rate ** (math.floor(periods) if use_staircase_decay else periods), min_lr)

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        decay_steps: int,
        decay_rate: float,
        use_staircase_decay: bool,
        begin_decay_at: int = 0,
        min_lr: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        super().__init__(
            optimizer,
            last_epoch=last_epoch,
            decay_steps=whole("decay_steps", decay_steps, low=1),
            decay_rate=number("decay_rate", decay_rate, low=0.0, high=1.0),
            use_staircase_decay=flag("use_staircase_decay", use_staircase_decay),
            begin_decay_at=whole("begin_decay_at", begin_decay_at, low=0),
            min_lr=number("min_lr", min_lr, low=0.0),
        )

    def phases(self) -> list[Phase]:
        """Hold and the decay, which has no end."""
        return _decay_phases(0, self.arguments["begin_decay_at"], None)


@register_scheduler("PolyDecay", aliases=["poly_decay"])
class PolyDecay(ClosedFormLR):
    """Polynomial decay to `min_lr`, under a warmup from 0 that multiplies the LR it starts from.

    `(w-min_lr) * (1 - (s-begin_decay_at)/decay_steps)^power + min_lr`, `w = base * min(1, s/W)`

    Args:
        optimizer: whose LR to set.
        max_steps: optimizer steps of the run; from it `decay_steps`, if that is not given.
        decay_steps: length of the decay, at least 1; None: up to `max_steps`.
        power: exponent, at least 0.
        begin_decay_at: the first step of the decay, before `max_steps`.
        min_lr: where the decay ends, an absolute LR.
        warmup_steps: steps in which `base` rises linearly from 0.
        last_epoch: step to continue from, -1 for a new run.

    """

    @staticmethod
    def formula(
        step: int,
        base_lr: float,
        *,
        decay_steps: int,
        power: float = 1.0,
        begin_decay_at: int = 0,
        min_lr: float = 0.0,
        warmup_steps: int = 0,
    ) -> float:
        """`(w-min_lr) * (1 - min((s-begin)/decay_steps, 1))^power + min_lr`; `w` before `begin`."""
        lr = _warmup(step, base_lr, warmup_steps)
        if step < begin_decay_at:
            return lr
        progress = min((step - begin_decay_at) / decay_steps, 1.0)
        return (lr - min_lr) * (1 - progress) ** power + min_lr

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_steps: int | None = None,
        decay_steps: int | None = None,
        power: float = 1.0,
        begin_decay_at: int = 0,
        min_lr: float = 0.0,
        warmup_steps: int = 0,
        last_epoch: int = -1,
    ) -> None:
        super().__init__(
            optimizer,
            last_epoch=last_epoch,
            **_decay_arguments(max_steps, decay_steps, begin_decay_at, warmup_steps),
            power=number("power", power, low=0.0),
            min_lr=number("min_lr", min_lr, low=0.0),
        )

    def phases(self) -> list[Phase]:
        """Warmup, hold and the decay."""
        return _decay_phases(**{k: self.arguments[k] for k in ("warmup_steps", "begin_decay_at", "decay_steps")})


@register_scheduler("CosineDecay", aliases=["cosine_decay"])
class CosineDecay(ClosedFormLR):
    """Half a cosine from the base LR to `min_lr_ratio` of it, under a warmup from 0 that multiplies it.

    `w * ((1-r) * (1 + cos(pi * (s-begin_decay_at)/decay_steps)) / 2 + r)`, `w = base * min(1, s/W)`, `r = min_lr_ratio`

    Args:
        optimizer: whose LR to set.
        max_steps: optimizer steps of the run; from it `decay_steps`, if that is not given.
        decay_steps: length of the decay, at least 1; None: up to `max_steps`.
        begin_decay_at: the first step of the decay, before `max_steps`.
        min_lr_ratio: where the decay ends, as a share of the base LR, 0..1 (OpenSeq2Seq's `min_lr`).
        warmup_steps: steps in which `base` rises linearly from 0.
        last_epoch: step to continue from, -1 for a new run.

    """

    @staticmethod
    def formula(
        step: int,
        base_lr: float,
        *,
        decay_steps: int,
        begin_decay_at: int = 0,
        min_lr_ratio: float = 0.0,
        warmup_steps: int = 0,
    ) -> float:
        """`w * ((1-r) * (1 + cos(pi * min((s-begin)/decay_steps, 1))) / 2 + r)`; `w` before `begin_decay_at`."""
        lr = _warmup(step, base_lr, warmup_steps)
        if step < begin_decay_at:
            return lr
        progress = min((step - begin_decay_at) / decay_steps, 1.0)
        return lr * ((1 - min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress)) + min_lr_ratio)

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_steps: int | None = None,
        decay_steps: int | None = None,
        begin_decay_at: int = 0,
        min_lr_ratio: float = 0.0,
        warmup_steps: int = 0,
        last_epoch: int = -1,
    ) -> None:
        super().__init__(
            optimizer,
            last_epoch=last_epoch,
            **_decay_arguments(max_steps, decay_steps, begin_decay_at, warmup_steps),
            min_lr_ratio=number("min_lr_ratio", min_lr_ratio, low=0.0, high=1.0),
        )

    def phases(self) -> list[Phase]:
        """Warmup, hold and the decay."""
        return _decay_phases(**{k: self.arguments[k] for k in ("warmup_steps", "begin_decay_at", "decay_steps")})


@register_scheduler("TransformerPolicy", aliases=["transformer_policy"])
class TransformerPolicy(ClosedFormLR):
    """Noam's schedule one step ahead of NoamAnnealing (`t = s+1`), with a factor and a cap.

    Args:
        optimizer: whose LR to set.
        d_model: width of the model, at least 1.
        warmup_steps: steps up to the peak, at least 1.
        max_lr: cap; None for no cap.
        coefficient: factor of the LR.
        last_epoch: step to continue from, -1 for a new run.

    """

    @staticmethod
    def formula(
        step: int,
        base_lr: float,
        *,
        d_model: int,
        warmup_steps: int,
        max_lr: float | None = None,
        coefficient: float = 1.0,
    ) -> float:
        """`base * coefficient * d_model^-0.5 * min(t^-0.5, t * W^-1.5)`, `t = s+1`, at most `max_lr`."""
        t = step + 1
        lr = base_lr * coefficient * d_model**-0.5 * min(t**-0.5, t * warmup_steps**-1.5)
        return lr if max_lr is None else min(lr, max_lr)

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        d_model: int,
        warmup_steps: int,
        max_lr: float | None = None,
        coefficient: float = 1.0,
        last_epoch: int = -1,
    ) -> None:
        super().__init__(
            optimizer,
            last_epoch=last_epoch,
            d_model=whole("d_model", d_model, low=1),
            warmup_steps=whole("warmup_steps", warmup_steps, low=1),
            max_lr=None if max_lr is None else number("max_lr", max_lr, low=0.0),
            coefficient=number("coefficient", coefficient, low=0.0),
        )

    def phases(self) -> list[Phase]:
        """Warmup up to the peak and the decay, which has no end."""
        return spans([("warmup", 0), ("anneal", self.arguments["warmup_steps"])], None)


@register_scheduler("InvPolyDecay", aliases=["inv_poly_decay"])
class InvPolyDecay(ClosedFormLR):
    """Inverse polynomial decay: `base / (1 + c*s)^power` with `c` such that the LR is `min_lr` at `decay_steps`.

    Args:
        optimizer: whose LR to set.
        min_lr: the LR at `decay_steps`, an absolute LR; raised to 1e-8 if smaller, as in OpenSeq2Seq.
        max_steps: optimizer steps of the run; from it `decay_steps`, if that is not given.
        decay_steps: at least 1; None: `max_steps`.
        power: exponent, above 0.
        last_epoch: step to continue from, -1 for a new run.

    """

    @staticmethod
    def formula(step: int, base_lr: float, *, decay_steps: int, min_lr: float, power: float = 1.0) -> float:
        """`base / (1 + c*s)^power`, `c` such that the LR is `min_lr` at `decay_steps`; it falls on afterwards."""
        scale = ((base_lr / min_lr) ** (1 / power) - 1) / decay_steps
        return base_lr * (1 + scale * step) ** -power  # the reciprocal would overflow in a long run

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        min_lr: float,
        max_steps: int | None = None,
        decay_steps: int | None = None,
        power: float = 1.0,
        last_epoch: int = -1,
    ) -> None:
        if number("power", power, low=0.0) == 0.0:
            raise ScheduleError("power", f"{power} is out of range; must be above 0")
        super().__init__(
            optimizer,
            last_epoch=last_epoch,
            decay_steps=_decay_arguments(max_steps, decay_steps, 0, 0)["decay_steps"],
            min_lr=max(number("min_lr", min_lr, low=0.0), 1e-8),
            power=float(power),
        )

    def phases(self) -> list[Phase]:
        """The decay down to `min_lr`; it goes on below."""
        return _decay_phases(0, 0, self.arguments["decay_steps"])


def _decay_arguments(
    max_steps: int | None, decay_steps: int | None, begin_decay_at: int, warmup_steps: int
) -> dict[str, int]:
    warmup_steps = whole("warmup_steps", warmup_steps, low=0)
    begin_decay_at = whole("begin_decay_at", begin_decay_at, low=0)
    if max_steps is not None:
        max_steps = whole("max_steps", max_steps, low=1)
        if warmup_steps > max_steps:
            raise ScheduleError("warmup_steps", f"{warmup_steps} is more than max_steps={max_steps}")
        if begin_decay_at >= max_steps:
            raise ScheduleError("begin_decay_at", f"{begin_decay_at} must be before max_steps={max_steps}")
    if decay_steps is not None:
        decay_steps = whole("decay_steps", decay_steps, low=1)
    elif max_steps is not None:
        decay_steps = max_steps - begin_decay_at
    else:
        raise ScheduleError("decay_steps", "missing, and no max_steps to take it from")
    return {"decay_steps": decay_steps, "begin_decay_at": begin_decay_at, "warmup_steps": warmup_steps}


def _decay_phases(warmup_steps: int, begin_decay_at: int, decay_steps: int | None) -> list[Phase]:
    after_warmup = warmup_steps + 1 if warmup_steps > 0 else 0
    after_hold = begin_decay_at + 1 if begin_decay_at > 0 else 0
    last_step = None if decay_steps is None else begin_decay_at + decay_steps
    return spans([("warmup", 0), ("hold", after_warmup), ("anneal", max(after_warmup, after_hold))], last_step)
