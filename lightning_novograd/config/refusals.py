"""Refusals in terms of the config: of a class its arguments, of a host what it cannot do."""

import re
from collections.abc import Iterable, Mapping

from lightning_novograd.config.schema import OptimConfig
from lightning_novograd.errors import ConfigError


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


def refuse_keys(config: OptimConfig, reasons: Mapping[str, str]) -> None:
    """Raise a ConfigError for the first of some keys of the block that is set.

    Args:
        config: the block.
        reasons: why these keys are refused, and what to use instead; `{}` stands for the value.

    """
    for key, reason in reasons.items():
        if (value := getattr(config, key)) is not None:
            raise ConfigError(f"{config.path}.{key}", reason.format(value))


def refuse_sched_keys(config: OptimConfig, reasons: Mapping[str, str]) -> None:
    """The same of keys of the block's schedules."""
    for sched in config.scheds:
        for key, reason in reasons.items():
            if (value := getattr(sched, key)) is not None:
                raise ConfigError(f"{sched.path}.{key}", f"{value:g}, but {reason}")
