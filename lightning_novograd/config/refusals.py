"""What a class says when it refuses its arguments, in terms of the config."""

import re
from collections.abc import Iterable


def join(path: str, tail: str) -> str:
    """The path of a key below `path`, or `path` itself."""
    return f"{path}.{tail}" if tail else path


def named(args: Iterable[str], problem: object) -> str:
    """The argument that an error message speaks of, or empty if that is none or several."""
    found = [name for name in args if re.search(rf"\b{name}s?\b", str(problem))]
    return found[0] if len(found) == 1 else ""


def said(error: Exception) -> str:
    """An error in one line."""
    text = str(error).split("\n")[0]
    return text if isinstance(error, ValueError | AssertionError) and text else f"{type(error).__name__}: {text}"
