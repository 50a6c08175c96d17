"""Calling a registered class with checked arguments; whatever it refuses becomes a ConfigError with the key's path."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_novograd.errors import ConfigError
from lightning_novograd.lr_scheduler.pytorch import check_arguments
from lightning_novograd.registry import Entry, get_optimizer, get_scheduler


@dataclass(frozen=True, kw_only=True)
class SchedulerSpec:
    """A scheduler and its arguments.

    Args:
        name: registered name.
        args: constructor arguments, plain values; a list of `SchedulerSpec` where the class takes schedulers.
        path: where the config has it.

    """

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    path: str = "optim.sched"

    @property
    def entry(self) -> Entry:
        """The registered class."""
        return get_scheduler(self.name, f"{self.path}.name")


def new_optimizer(name: str, groups: list[Any], args: Mapping[str, Any], path: str) -> Optimizer:
    """`name`'s optimizer of parameters or param groups `groups`.

    Raises:
        ConfigError: the class refuses an argument.

    """
    entry = get_optimizer(name, f"{path}.name")
    try:
        return entry.cls(groups, **args)
    except ConfigError as error:
        raise ConfigError(_join(path, error.path), error.problem) from error
    except Exception as error:
        # the arguments are all that came from outside, so whatever it raises is about them
        where = _join(path, _culprit(entry.cls, args))
        raise ConfigError(where, f"{entry.name} refuses it: {_said(error)}") from error


def new_scheduler(spec: SchedulerSpec, optimizer: Optimizer, length: int | None = None, explained: str = "") -> Any:
    """`spec`'s scheduler on `optimizer`.

    Args:
        spec: class and arguments.
        optimizer: what it drives.
        length: optimizer steps of the run (epochs, for a scheduler stepped once per epoch), where `needs_length`.
        explained: what `length` is and where it came from, for error messages.

    Raises:
        ConfigError: the class refuses an argument.

    """
    entry = spec.entry
    args: dict[str, Any] = {
        name: [new_scheduler(s, optimizer) for s in value] if entry.arguments[name].takes_schedulers else value
        for name, value in spec.args.items()
    }
    if entry.length is not None and length is not None:
        args[entry.length] = length
    given = f" ({explained})" if explained else ""
    try:
        check_arguments(entry.cls, args)
        return entry.cls(optimizer, **args) if _optimizer_first(entry) else entry.cls(optimizer=optimizer, **args)
    except ConfigError as error:
        raise ConfigError(_join(spec.path, error.path), error.problem + given) from error
    except Exception as error:
        # as in new_optimizer; torch's schedulers raise KeyError, TypeError, ZeroDivisionError and AssertionError too
        where = _join(spec.path, _named(args, error))
        raise ConfigError(where, f"{entry.name} refuses it: {_said(error)}{given}") from error


def needs_length(spec: SchedulerSpec) -> bool:
    """Whether the class takes the length of the run and `spec` leaves it open."""
    length = spec.entry.length
    given = {name for name, value in spec.args.items() if value is not None}
    # OneCycleLR's other way to say total_steps
    own_way = {"epochs", "steps_per_epoch"} <= given
    return length is not None and length not in given and not own_way


def new_larc(optimizer: Optimizer, args: Mapping[str, Any], path: str) -> Any:
    """LARC around `optimizer`.

    Raises:
        ConfigError: LARC refuses an argument.

    """
    try:
        return LARC.cls(optimizer, **args)
    except Exception as error:
        # as in new_optimizer; LARC calls its arguments by their names in param groups, with a prefix
        problem = re.sub(rf"\blarc_({'|'.join(LARC.arguments)})\b", r"\1", _said(error))
        raise ConfigError(_join(path, _named(args, problem)), f"LARC refuses it: {problem}") from error


def probe(name: str, args: Mapping[str, Any], path: str) -> Optimizer:
    """An optimizer of one throw-away weight: bad ranges show before there is a model."""
    weight = torch.nn.Parameter(torch.zeros(1, 1))
    return new_optimizer(name, [weight], args, path)


def _optimizer_first(entry: Entry) -> bool:
    return not any(argument.takes_schedulers for argument in entry.arguments.values())


def _culprit(cls: type, args: Mapping[str, Any]) -> str:
    """The argument that is refused on its own, or empty if none is (they do not go together)."""
    for name, value in args.items():
        try:
            cls([torch.nn.Parameter(torch.zeros(1, 1))], **{name: value})
        except Exception:
            return name
    return ""


def _named(args: Iterable[str], problem: object) -> str:
    """The argument that an error message speaks of, or empty if that is none or several."""
    named = [name for name in args if re.search(rf"\b{name}s?\b", str(problem))]
    return named[0] if len(named) == 1 else ""


def _join(path: str, tail: str) -> str:
    return f"{path}.{tail}" if tail else path


def _said(error: Exception) -> str:
    text = str(error).split("\n")[0]
    return text if isinstance(error, ValueError | AssertionError) and text else f"{type(error).__name__}: {text}"
