"""The grammar that NeMo's policies share: phases given in steps or as a share of the run."""

import math
import numbers
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

from torch.optim import Optimizer

from lightning_novograd.lr_scheduler.base import ClosedFormLR, Phase, ScheduleError
from lightning_novograd.ranges import BEYOND_FLOAT32, LARGEST_FLOAT32

if TYPE_CHECKING:
    from typing import Unpack
else:

    class Unpack:
        """Any: LightningCLI then finds help and defaults of `**phases` at the base class; a TypedDict has neither."""

        def __class_getitem__(cls, arguments: type) -> Any:
            return Any


StepsOrRatio = tuple[int | None, float | None]


class PhasedLR(ClosedFormLR):
    """Base of the policies with the phases warmup, hold, anneal, constant, as far as they have them.

    `formula` is the whole schedule. Symbols: `s` step, counted from 0 (the LR that optimizer step `s` sees), `base` the
    param group's own LR, `W` = `warmup_steps`, `M` = `max_steps`, `H` = `hold_end` (`W + hold_steps`; 0 where no hold
    is given, as in NeMo, even with warmup)::

        base * (s+1) / (W+1)    while s <= W, if W > 0: the base LR is reached at s = W
        base                    while s < H
        min_lr                  once s > M
        annealing(s, base)      otherwise

    A policy writes `annealing` alone; without it the LR stays at `base`. It gets `max_steps`, `min_lr`, `warmup_steps`,
    `hold_steps`, `hold_end` and the policy's own arguments by name, all checked, ratios as steps. One without these
    phases (Noam's) writes a `formula` instead, as any ClosedFormLR does.

    Most constructors are those of `WarmupLR`, `EndlessWarmupLR` and `WarmupHoldLR`. A policy with further arguments
    checks them, puts them in `self.arguments` and hands the rest on::

        class QuarterCircle(WarmupLR):
            @staticmethod
            def annealing(step, base_lr, *, max_steps, min_lr, radius, **_):
                return max(base_lr * (1 - (step / max_steps / radius) ** 2) ** 0.5, min_lr)

            def __init__(self, optimizer, *, radius: float = 1.0, **phases):
                self.arguments = {"radius": number("radius", radius, low=1.0)}
                super().__init__(optimizer, **phases)

    A constructor with phases of another kind passes them on as its user gave them, `warmup=(steps, ratio)` and so on.

    Args:
        optimizer: whose LR to set; every param group keeps its own base LR.
        last_epoch: step to continue from, -1 for a new run.
        max_steps: optimizer steps of the run, at least 1; afterwards the LR is `min_lr`.
        min_lr: where annealing ends, an absolute LR, at most the base LR of every param group.
        warmup_steps: steps until the base LR is reached, 0..max_steps.
        warmup_ratio: `warmup_steps` as a share of `max_steps`, 0..1, truncated to whole steps.
        hold_steps: steps at the base LR after warmup; warmup and hold must end before `max_steps`.
        hold_ratio: `hold_steps` as a share of `max_steps`, 0..1, truncated to whole steps.
        constant_steps: last steps, at `min_lr`; with warmup at most `max_steps`.
        constant_ratio: `constant_steps` as a share of `max_steps`, 0..1, truncated to whole steps.

    Raises:
        ScheduleError: an impossible schedule; `path` is the argument at fault.

    """

    annealing: ClassVar[Callable[..., float]] = staticmethod(lambda step, base_lr, **_: base_lr)
    main_phase = "anneal"
    needs_warmup = False

    def __init__(
        self,
        optimizer: Optimizer,
        last_epoch: int,
        *,
        max_steps: int | None,
        min_lr: float,
        warmup: StepsOrRatio | None = None,
        hold: StepsOrRatio | None = None,
        constant: StepsOrRatio | None = None,
        endless: bool = False,
        **own: Any,
    ) -> None:
        # endless: whether max_steps may be None
        own = {**getattr(self, "arguments", {}), **own}
        if max_steps is not None:
            max_steps = whole("max_steps", max_steps, low=1)
        elif not endless:
            raise ScheduleError("max_steps", f"None; {type(self).__name__} needs the number of steps of the run")
        arguments: dict[str, Any] = {"max_steps": max_steps, "min_lr": number("min_lr", min_lr, low=0.0), **own}
        taken = 0
        for name, given in {"warmup": warmup, "hold": hold, "constant": constant}.items():
            if given is None:
                continue
            steps, source = resolve_steps(name, *given, max_steps)
            if name == "warmup" and self.needs_warmup and not steps:
                raise ScheduleError(source, f"no warmup; {type(self).__name__} decays relative to its length")
            taken += steps or 0
            arguments[f"{name}_steps"] = steps if name == "hold" else steps or 0
            if max_steps is not None:
                self._check_fit(name, source, steps or 0, taken, max_steps)
        super().__init__(optimizer, last_epoch=last_epoch, **arguments)

    def _check_fit(self, name: str, source: str, steps: int, taken: int, max_steps: int) -> None:
        # A warmup as long as the run is a linear ramp, and constant_steps may follow warmup at once; after a hold
        # phase or without warmup the annealing formula would divide by its length, 0.
        needs_more = steps > 0 and (name == "hold" or (name == "constant" and taken == steps))
        if taken > max_steps or (needs_more and taken == max_steps):
            before = f" after {taken - steps} steps of warmup" if taken > steps else ""
            must = "must end before it" if needs_more else "must not be longer"
            raise ScheduleError(source, f"{steps} {name} steps{before} do not fit max_steps={max_steps}; {must}")

    @classmethod
    def formula(cls, step: int, base_lr: float, *args: Any, **arguments: Any) -> float:
        """The whole schedule: `annealing` between the phases that all policies share."""
        return phased(cls.annealing, step, base_lr, *args, **arguments)

    def phases(self) -> list[Phase]:
        """Warmup, hold, the policy's main phase and the constant end, as far as this schedule has them."""
        max_steps, warmup_steps = self.arguments["max_steps"], self.arguments.get("warmup_steps", 0)
        after_warmup = warmup_steps + 1 if warmup_steps > 0 else 0
        hold_end = warmup_steps + (self.arguments.get("hold_steps") or 0)
        starts = [("warmup", 0), ("hold", after_warmup), (self.main_phase, max(after_warmup, hold_end))]
        if self.arguments.get("constant_steps"):
            starts.append(("constant", max_steps - self.arguments["constant_steps"] + 1))
        return spans(starts, max_steps)


def phased(
    annealing: Callable[..., float],
    step: int,
    base_lr: float,
    *,
    max_steps: int | None = None,
    warmup_steps: int = 0,
    hold_steps: int | None = None,
    min_lr: float = 0.0,
    **own: Any,
) -> float:
    """The LR of a step in warmup, in hold or after `max_steps`, and otherwise what `annealing` gives."""
    if warmup_steps > 0 and step <= warmup_steps:
        return base_lr * ((step + 1) / (warmup_steps + 1))
    hold_end = 0 if hold_steps is None else warmup_steps + hold_steps
    if step < hold_end:
        return base_lr
    if max_steps is not None and step > max_steps:
        return min_lr
    phases = {"warmup_steps": warmup_steps, "hold_steps": hold_steps or 0, "hold_end": hold_end}
    return annealing(step, base_lr, max_steps=max_steps, min_lr=min_lr, **phases, **own)


class Warmup(TypedDict, total=False):
    """What the constructor of a policy with warmup hands on."""

    warmup_steps: int | None
    warmup_ratio: float | None
    last_epoch: int


class WarmupHold(Warmup, total=False):
    """The same with hold."""

    hold_steps: int | None
    hold_ratio: float | None


class WarmupLR(PhasedLR):
    """A policy with warmup."""

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


class EndlessWarmupLR(PhasedLR):
    """A policy with warmup that needs no end."""

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


class WarmupHoldLR(PhasedLR):
    """A policy with warmup and hold."""

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


def spans(starts: Iterable[tuple[str, int]], last_step: int | None) -> list[Phase]:
    """Phases from their first steps, each ending where the next begins; empty ones are left out."""
    starts = list(starts)
    ends = [first - 1 for _, first in starts[1:]] + [last_step]
    phases = [Phase(name, first, last) for (name, first), last in zip(starts, ends, strict=True)]
    return [phase for phase in phases if phase.last_step is None or phase.first_step <= phase.last_step]


def whole(name: str, value: Any, *, low: int) -> int:
    """`value` as an int of at least `low`; 1e3 counts, since that is how YAML files write thousands."""
    steps = _finite(name, value)
    if not steps.is_integer():
        raise ScheduleError(name, f"{value!r} is not a whole number")
    if steps < low:
        raise ScheduleError(name, f"{value!r} is out of range; must be at least {low}")
    return int(value)


def number(name: str, value: Any, *, low: float, high: float = math.inf) -> float:
    """`value` as a finite float in `low..high`."""
    real = _finite(name, value)
    if not low <= real <= high:
        allowed = f"at least {low:g}" if high == math.inf else f"in {low:g}..{high:g}"
        raise ScheduleError(name, f"{value!r} is out of range; must be {allowed}")
    return real


def _finite(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ScheduleError(name, f"{value!r} is not a finite number")
    if abs(real := float(value)) > LARGEST_FLOAT32:
        raise ScheduleError(name, f"{value!r} {BEYOND_FLOAT32}")
    return real


def flag(name: str, value: Any) -> bool:
    """`value`, which must be a bool."""
    if not isinstance(value, bool):
        raise ScheduleError(name, f"{value!r} is not true or false")
    return value


def resolve_steps(name: str, steps: int | None, ratio: float | None, max_steps: int | None) -> tuple[int | None, str]:
    """`{name}_steps`, or `int({name}_ratio * max_steps)` as NeMo truncates, or None; and the argument it came from."""
    if steps is not None and ratio is not None:
        raise ScheduleError(f"{name}_ratio", f"{name}_steps={steps} and {name}_ratio={ratio} are both given; give one")
    if ratio is None:
        return None if steps is None else whole(f"{name}_steps", steps, low=0), f"{name}_steps"
    share = number(f"{name}_ratio", ratio, low=0.0, high=1.0)
    if max_steps is None:
        raise ScheduleError(f"{name}_ratio", f"{ratio} is a share of max_steps, which is not given")
    return int(share * max_steps), f"{name}_ratio"
