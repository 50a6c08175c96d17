"""The exceptions users see, and the one place where a nearest match is looked up."""

import difflib
from collections.abc import Iterable


class LightningNovoGradError(Exception):
    """Base of every exception that this package raises on purpose; its message can be printed."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(LightningNovoGradError, ValueError):
    """A config that cannot mean what it says: unknown key, wrong type, impossible value.

    Args:
        path: full key path of the offending value, ``"optim.sched.warmup_steps"``; empty for a whole document.
        problem: what is wrong, with the bad value in it.
    """

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"{path}: {problem}" if path else problem)

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[str, str]]:
        return type(self), (self.path, self.problem)


class DataError(LightningNovoGradError, ValueError):
    """Training data that cannot be used; the message names the file and, in a manifest, the line."""


def printable(value: object) -> str:
    """`value` as text that a UTF-8 stream takes: bytes of a file name that are not UTF-8 are escaped."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def closest(name: object, allowed: Iterable[str]) -> str | None:
    """The entry of `allowed` that `name` is most likely a misspelling of, or None."""
    names = list(allowed)
    by_folded = {n.casefold(): n for n in reversed(names)}
    matches = difflib.get_close_matches(str(name).casefold(), list(by_folded), n=1, cutoff=0.6)
    return by_folded[matches[0]] if matches else None


def choices(name: object, allowed: Iterable[str]) -> str:
    """`"; did you mean 'lr'? Allowed: betas, lr"`: the end of every message about an unknown name."""
    names = sorted(allowed)
    best = closest(name, names)
    hint = f"; did you mean {best!r}?" if best is not None else "."
    return f"{hint} Allowed: {', '.join(names)}"
