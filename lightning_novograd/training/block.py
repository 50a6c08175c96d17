"""The optim block as a module is given it: in code, or by LightningCLI, which may leave numbers in it as text."""

import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from lightning_novograd.config import OptimConfig
from lightning_novograd.config.arguments import of_command_line
from lightning_novograd.config.several import parse_blocks
from lightning_novograd.errors import ConfigError


def parse_assigned(cfg: Any, by_cli: bool) -> dict[str, OptimConfig]:
    """The blocks of `cfg` by name; of those `by_cli`, texts are read as numbers where numbers are wanted.

    Raises:
        ConfigError: a block does not parse, or it lacks what the command line gives.

    """
    if not by_cli:
        return parse_blocks(cfg)
    _check_all_there(cfg)
    with of_command_line():
        return parse_blocks(cfg)


def _check_all_there(cfg: Any) -> None:
    """Refuse a block that jsonargparse has lost something of.

    Of `--model.optim.sched.name=cosine --model.optim.sched.warmup_steps=10` it keeps the last alone.
    """
    for prefix, given in _nested_options().items():
        key = prefix.rpartition(".")[2]
        kept = cfg.get(key) if isinstance(cfg, Mapping) else None
        if not isinstance(kept, Mapping) or list(given)[-1] not in kept:
            continue
        if (lost := next((name for name in given if name not in kept), None)) is not None:
            whole = ", ".join(f"{name}: {value}" for name, value in given.items())
            problem = (
                f"jsonargparse keeps only the last of several options {prefix}.KEY; write one: {prefix}='{{{whole}}}'"
            )
            raise ConfigError(f"optim.{key}.{lost}", f"{given[lost]}, which got lost: {problem}")


def _nested_options() -> dict[str, dict[str, str]]:
    """Options such as `--model.optim.sched.name=cosine`: `{"--model.optim.sched": {"name": "cosine"}}`."""
    found: dict[str, dict[str, str]] = {}
    for option, value in _options():
        prefix, _, name = option.rpartition(".")
        if prefix.count(".") >= 2:
            found.setdefault(prefix, {}).pop(name, None)  # the last comes last
            found[prefix][name] = value
    return found


def _options() -> Iterator[tuple[str, str]]:
    for word, following in pairwise([*sys.argv, ""]):
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            yield option, value if equals else following


def built_by_cli(lightning: str | None) -> bool:
    """Whether LightningCLI is building a module right now; `lightning` is the package that the module is of."""
    mixins = sys.modules.get(f"{lightning}.core.mixins.hparams_mixin")
    given = getattr(mixins, "_given_hyperparameters", None)
    return given is not None and given.get() is not None
