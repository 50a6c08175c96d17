"""How far a long task is: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Protocol, TextIO

from tqdm import tqdm

INTERVAL = 30.0  # s between lines where there is no terminal


class Progress(Protocol):
    """What a task reports to."""

    def advance(self, amount: int) -> None:
        """So much more is done; negative if it has to be done again."""


class _Bar:
    """A bar; several below each other are tqdm's affair."""

    def __init__(self, bar: tqdm) -> None:
        self._bar = bar

    def advance(self, amount: int) -> None:
        self._bar.update(amount)


class _Lines:
    """A line each `INTERVAL`: nothing for what is done sooner."""

    def __init__(self, label: str, total: int | None, done: int, stream: TextIO, unit: str) -> None:
        self._label, self._total, self._stream, self._unit = label, total, stream, unit
        self._done = self._first = done
        self._began = self._last = time.monotonic()

    def advance(self, amount: int) -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._last < INTERVAL:
            return
        self._last = now
        speed = max(0.0, (self._done - self._first) / (now - self._began))
        line = f"{self._label}: {_amount(self._done, self._unit)}"
        if self._total:
            line += f" of {_amount(self._total, self._unit)} ({100 * self._done / self._total:.0f} %)"
        line += f", {_amount(speed, self._unit)}/s"
        if self._total and speed:
            line += f", {tqdm.format_interval(max(0.0, self._total - self._done) / speed)} left"
        print(line, file=self._stream, flush=True)


def _amount(value: float, unit: str) -> str:
    return str(tqdm.format_sizeof(value, unit))


@contextlib.contextmanager
def progress(label: str, total: int | None, *, done: int = 0, unit: str = "B") -> Iterator[Progress]:
    """Show on stderr how far a task is.

    Args:
        label: what is being done.
        total: how much there is to do; None where it is not known.
        done: how much of it was done before.
        unit: of both.

    Example:
        >>> with progress("dev-clean.tar.gz", 100) as task:
        ...     task.advance(100)
    """
    stream = sys.stderr
    if not stream.isatty():
        yield _Lines(label, total, done, stream, unit)
        return
    with tqdm(desc=label, total=total, initial=done, unit=unit, unit_scale=True, file=stream, leave=False) as bar:
        yield _Bar(bar)
