"""Whether a rank has died, was stopped, or hangs, and which one: from what is seen of all of them."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from lightning_novograd.errors import LightningNovoGradError
from lightning_novograd.recipes.common.faults.heartbeat import Pulse
from lightning_novograd.recipes.common.faults.processes import GONE, STOPPED, Process

KEY = "watchdog.timeout"


class RankError(LightningNovoGradError, RuntimeError):
    """A rank that has died or hangs, so that the job cannot go on."""


class Sight(NamedTuple):
    """What one rank has seen of another.

    Args:
        pulse: its last sign of life.
        ticked: when another sign of life than the one before was seen, s by this process's clock.
        moved: when it was first seen at the place where it is, s.
    """

    pulse: Pulse
    ticked: float
    moved: float


class Verdict(NamedTuple):
    """Which rank is to blame, and why."""

    culprit: Pulse
    problem: str


class Lookout:
    """Judges other ranks by their signs of life.

    Times are those of this process: clocks of machines differ. The time for which this process itself was stopped
    (a debugger, a machine that slept) is held against nobody.

    Args:
        timeout: s without a sign of life, or without progress of any rank, that are too many.
        pause: s between two looks; one that comes much later was kept from looking.
    """

    def __init__(self, timeout: float, pause: float) -> None:
        self.timeout, self.pause = timeout, pause
        self.sights: dict[int, Sight] = {}
        self._looked: float | None = None

    def see(self, pulses: Mapping[int, Pulse], now: float) -> None:
        """Take what there is. A rank that has taken back its signs of life has left.

        Args:
            pulses: by rank.
            now: s.
        """
        asleep = 0.0 if self._looked is None else max(now - self._looked - 3 * self.pause, 0.0)
        self._looked = now
        seen = {}
        for rank, pulse in pulses.items():
            before = self.sights.get(rank)
            if before is None or before.pulse.process != pulse.process:
                seen[rank] = Sight(pulse, now, now)
                continue
            ticked = now if pulse.tick != before.pulse.tick else before.ticked + asleep
            moved = now if pulse.count != before.pulse.count else before.moved + asleep
            seen[rank] = Sight(pulse, ticked, moved)
        self.sights = seen

    def dead(self, state_of: Callable[[Process], str]) -> Verdict | None:
        """The first rank of this machine whose process is gone."""
        for sight in self.sights.values():
            if state_of(sight.pulse.process) == GONE:
                return Verdict(sight.pulse, f"has died; it was {sight.pulse.doing}")
        return None

    def silent(self, now: float, state_of: Callable[[Process], str], timeout: float | None = None) -> Verdict | None:
        """The rank that has given no sign of life for longest, if that is too long.

        Args:
            now: s.
            state_of: what the system says of a process.
            timeout: s, instead of the usual one.
        """
        limit = self.timeout if timeout is None else timeout
        if not self.sights:
            return None
        sight = min(self.sights.values(), key=lambda sight: sight.ticked)
        if now - sight.ticked <= limit:
            return None
        if state_of(sight.pulse.process) == STOPPED:
            problem = f"is stopped (by a SIGSTOP, or a debugger) and has given no sign of life for {limit:g} s ({KEY})"
        else:
            problem = (
                f"has given no sign of life for {limit:g} s ({KEY}): it was killed or stopped, or its machine is gone"
            )
        return Verdict(sight.pulse, f"{problem}; it was {sight.pulse.doing}")

    def stuck(self, now: float) -> Verdict | None:
        """The rank that is behind, where none has moved for too long.

        A single one that does not move says nothing, as the others may have more to do; in the end all wait for it.
        """
        sights = list(self.sights.values())
        if not sights or not all(sight.pulse.in_loop and now - sight.moved > self.timeout for sight in sights):
            return None
        behind = min(sight.pulse.count for sight in sights)
        culprits = [sight.pulse for sight in sights if sight.pulse.count == behind]
        problem = f"has not got on for {self.timeout:g} s ({KEY}): it is {culprits[0].doing}"
        if len(culprits) == len(sights) > 1:
            problem += ", as all ranks are: their connection, or a shared disk, may hang"
        elif len(culprits) < len(sights):
            problem += ", and the others wait for it"
        return Verdict(culprits[0], problem)
