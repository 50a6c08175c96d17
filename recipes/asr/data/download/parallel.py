"""Several things at once, which all stop when one fails or the user interrupts."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
Result = TypeVar("Result")

NEVER = threading.Event()  # for those who cannot be stopped


class Stopped(Exception):
    """Somebody else failed; what this one did so far stays where it is."""


def stop_if(stop: threading.Event) -> None:
    """Leave with `Stopped` if `stop` is set."""
    if stop.is_set():
        raise Stopped


def run_all(work: Callable[[T, threading.Event], Result], items: Iterable[T], jobs: int) -> list[Result]:
    """`work(item, stop)` for all items in `jobs` threads; the results in the order of the items.

    The first exception of any of them, or of the waiting thread (Ctrl-C), sets `stop`, waits for those that run and is
    raised; what has not begun does not begin.

    Example:
        >>> run_all(lambda item, stop: item**2, [1, 2, 3], jobs=2)
        [1, 4, 9]
    """
    stop = threading.Event()
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(work, item, stop) for item in items]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()  # no matter to those that are done
            pool.shutdown(cancel_futures=True)
    errors = [error for future in futures if not future.cancelled() and (error := future.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, Stopped)):
        raise error
    return [future.result() for future in futures]
