"""How long a schedule is: by its own keys, else as long as the run."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from numbers import Integral
from typing import Any

from lightning_novograd.config.arguments import entry_arguments
from lightning_novograd.config.schema import SchedConfig, SchedulerSpec
from lightning_novograd.errors import ConfigError
from lightning_novograd.lr_scheduler.pytorch import one_cycles

_WITH_EPOCHS = "to count epochs, give max_steps=RunLength(steps, 'my loop', epochs, steps_per_epoch)"


@dataclass(frozen=True)
class RunLength:
    """How long a run is, as far as that is known.

    Args:
        steps: optimizer steps, >= 1; None: unknown.
        source: where that comes from, or why it is unknown; shown to the user.
        epochs: of the run; None: unknown.
        steps_per_epoch: optimizer steps in one epoch, or a function of its index (from 0) if they are not as many in
            each; None: unknown.
        trial: not the run's length but one in which every schedule fits (`fast_dev_run`).
        without_epochs: why epochs are unknown, where `source` does not say so; shown to the user.

    """

    steps: int | None
    source: str
    epochs: int | None = None
    steps_per_epoch: int | Callable[[int], int] | None = None
    trial: bool = False
    without_epochs: str = ""

    @property
    def unknown(self) -> str:
        """Why nothing is known of epochs."""
        return self.without_epochs or self.source

    @classmethod
    def given(cls, length: "Length") -> "RunLength":
        """What a caller said: a number of steps, a RunLength, a function that returns one of them, or None.

        Raises:
            ConfigError: a number below 1, or no whole number.

        """
        said = length() if callable(length) else length
        if said is None:
            return cls(None, "it was not given", without_epochs=f"max_steps was not given; {_WITH_EPOCHS}")
        if isinstance(said, RunLength):
            steps, per_epoch = said.steps, said.steps_per_epoch
            if said.epochs is None and steps is not None and isinstance(per_epoch, int) and per_epoch > 0:
                return replace(said, epochs=-(-steps // per_epoch))
            return said
        if isinstance(said, bool) or not isinstance(said, Integral):
            raise ConfigError("max_steps", f"{said!r} is not a whole number; must be one of at least 1, or None")
        if said < 1:
            raise ConfigError("max_steps", f"{said} is out of range; must be at least 1")
        return cls(int(said), "max_steps", without_epochs=f"max_steps is a number of steps; {_WITH_EPOCHS}")


Length = int | RunLength | Callable[[], int | RunLength] | None


def schedule_length(sched: SchedConfig, run: Callable[[], RunLength]) -> tuple[int | None, str]:
    """What the scheduler counts to, steps or epochs, and where that comes from; the run is asked only if need be.

    Raises:
        ConfigError: the scheduler cannot do without a length and none is known.

    """
    if sched.max_steps is not None:
        return sched.max_steps, f"{sched.path}.max_steps"
    if sched.interval == "epoch" and sched.max_epochs is not None:
        return sched.max_epochs, f"{sched.path}.max_epochs"
    asked = run()
    if sched.max_epochs is not None:
        return steps_of_epochs(sched, "max_epochs", asked)
    length = asked.steps if sched.interval == "step" else asked.epochs
    if length is None and _required(sched):
        why = asked.source if sched.interval == "step" else asked.unknown
        raise ConfigError(
            f"{sched.path}.max_{sched.interval}s",
            f"{sched.name} needs the length of the run, which is unknown: {why}; set it here",
        )
    return length, asked.source


def steps_of_epochs(sched: SchedConfig, key: str, run: RunLength) -> tuple[int, str]:
    """The optimizer steps of as many epochs as `sched` has at `key`, and where that comes from.

    Raises:
        ConfigError: the length of an epoch is unknown.

    """
    epochs = getattr(sched, key)
    source = f"{sched.path}.{key}={epochs}"
    if run.steps_per_epoch is None:
        raise ConfigError(f"{sched.path}.{key}", f"the length of an epoch is unknown: {run.unknown}")
    if callable(run.steps_per_epoch):
        return sum(map(run.steps_per_epoch, range(epochs))), f"{source} with a changing accumulation"
    return epochs * run.steps_per_epoch, f"{source} x {run.steps_per_epoch} steps per epoch"


def _required(sched: SchedulerSpec) -> bool:
    """Whether the scheduler cannot do without a length: it has no default, or only one that refuses to work."""
    if isinstance(sched, SchedConfig) and sched.warmup_ratio is not None:
        return True
    if not sched.takes_length:
        return any(_required(member) for member in sched.members if member.needs_length)
    entry = sched.entry
    return entry_arguments(entry)[str(entry.length)].required or entry.length != "max_steps"


def refuse_longer_run(sched: SchedConfig, spec: SchedulerSpec, scheduler: Any, run: Callable[[], RunLength]) -> None:
    """Where other schedulers stay at their last LR, torch's OneCycleLR raises: better now than in the middle.

    Args:
        sched: the block.
        spec: what `scheduler` was built from, `sched`'s own scheduler or that after a warmup.
        scheduler: to be stepped in the run.
        run: its length.

    Raises:
        ConfigError: the run steps a OneCycleLR, on its own or inside another scheduler, beyond its end.

    """
    if not any(one_cycles(scheduler, 0)):
        return
    asked = run()
    length = asked.steps if sched.interval == "step" else asked.epochs
    if length is None or asked.trial:
        return
    for place, total_steps, steps in one_cycles(scheduler, length // sched.frequency):
        if steps <= total_steps:
            continue
        cycle: SchedulerSpec = reduce(lambda outer, index: outer.args["schedulers"][index], place, spec)
        own = next((name for name in ("total_steps", "epochs") if cycle.args.get(name) is not None), None)
        key = own or ("max_steps" if sched.max_steps is not None else "max_epochs")
        problem = f"OneCycleLR ends after {total_steps} {sched.interval}s, and the run has {length}: {asked.source}"
        cure = "; leave it out and the cycle is as long as the run" if cycle is spec else ""
        raise ConfigError(f"{cycle.path}.{key}", problem + cure)
