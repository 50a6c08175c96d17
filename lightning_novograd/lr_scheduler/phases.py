"""The grammar that NeMo's policies share: phases given in steps or as a share of the run."""

import math
import numbers
from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer

from lightning_novograd.lr_scheduler.base import ClosedFormLR, Phase, ScheduleError

StepsOrRatio = tuple[int | None, float | None]


class PhasedLR(ClosedFormLR):
    """Base of the policies with the phases warmup, hold, anneal, constant, as far as they have them.

    A policy passes on `warmup=(steps, ratio)` and so on, as its user gave them, for the phases that it has; its formula
    gets `warmup_steps`, resolved and checked. Arguments of the formula's own go through unchanged.

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
        **shape: Any,
    ) -> None:
        # endless: whether max_steps may be None
        if max_steps is not None:
            max_steps = whole("max_steps", max_steps, low=1)
        elif not endless:
            raise ScheduleError("max_steps", f"None; {type(self).__name__} needs the number of steps of the run")
        arguments: dict[str, Any] = {"max_steps": max_steps, "min_lr": number("min_lr", min_lr, low=0.0), **shape}
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

    def phases(self) -> list[Phase]:
        """Warmup, hold, the policy's main phase and the constant end, as far as this schedule has them."""
        max_steps, warmup_steps = self.arguments["max_steps"], self.arguments.get("warmup_steps", 0)
        after_warmup = warmup_steps + 1 if warmup_steps > 0 else 0
        hold_end = warmup_steps + (self.arguments.get("hold_steps") or 0)
        starts = [("warmup", 0), ("hold", after_warmup), (self.main_phase, max(after_warmup, hold_end))]
        if self.arguments.get("constant_steps"):
            starts.append(("constant", max_steps - self.arguments["constant_steps"] + 1))
        return spans(starts, max_steps)


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
    return float(value)


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
