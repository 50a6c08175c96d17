"""`python -m lightning_novograd convert-checkpoint`: optimizer state of a training checkpoint, from file to file.

Files are read with `weights_only=True`: no code of theirs runs. Of what NeMo and Lightning put into checkpoints beside
tensors, OmegaConf's containers are allowed.
"""

import argparse
import collections
import typing
from pathlib import Path
from typing import Any

import omegaconf
import torch

from lightning_novograd.commands.output import check_folder, whole_file
from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.optim.checkpoint import FORMATS, convert_checkpoint
from lightning_novograd.optim.checkpoint.files import load_plain

_CONTAINERS: list[Any] = [
    omegaconf.DictConfig,
    omegaconf.ListConfig,
    omegaconf.base.ContainerMetadata,
    omegaconf.base.Metadata,
    omegaconf.nodes.AnyNode,
    omegaconf.nodes.BooleanNode,
    omegaconf.nodes.FloatNode,
    omegaconf.nodes.IntegerNode,
    omegaconf.nodes.StringNode,
    collections.defaultdict,
    typing.Any,
    dict,
    list,
    int,
]


def add_convert_checkpoint(commands: Any) -> None:
    """Add the subcommand to what `ArgumentParser.add_subparsers` returned."""
    command = commands.add_parser("convert-checkpoint", help="optimizer state from or to NeMo, timm, apex, ...")
    command.add_argument("input", type=Path, help="checkpoint of Lightning or NeMo, or an optimizer's state dict")
    command.add_argument("output", type=Path, help="file to write; must not exist")
    command.add_argument("--from", dest="source", choices=FORMATS, help="recognized, without it")
    command.add_argument("--to", dest="target", choices=FORMATS, default="ours")
    command.add_argument(
        "--reg-inside-moment",
        action="store_true",
        default=None,
        help="apex's optimizer was built with reg_inside_moment=True (it does not store that)",
    )
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    convert_file(args.input, args.output, args.source, args.target, reg_inside_moment=args.reg_inside_moment)
    print(args.output)


def convert_file(
    input: Path, output: Path, source: str | None, target: str, *, reg_inside_moment: bool | None = None
) -> None:
    """Write a copy of the checkpoint `input` to `output`, with its NovoGrad state converted.

    Args:
        input: a file that torch.save wrote.
        output: must not exist.
        source: as for `convert_state_dict`.
        target: as for `convert_state_dict`.
        reg_inside_moment: as for `convert_state_dict`.

    Raises:
        ConfigError: a file that is missing, in the way, unreadable or unwritable, or a state that cannot be converted;
            then there is no output.

    """
    check_folder(output)
    if output.exists():
        raise ConfigError(str(output), "exists already; choose another output file")
    try:
        converted = convert_checkpoint(_load(input), source, target, reg_inside_moment=reg_inside_moment)
    except ConfigError as error:
        if error.path in ("source", "target", str(input)):
            raise
        raise ConfigError(str(input), str(error)) from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # a dict that looks like a state dict may still hold anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(str(input), f"the optimizer's state is damaged: {reason}") from error
    with whole_file(output) as partial:
        torch.save(converted, partial)


def _load(path: Path) -> dict[str, Any]:
    try:
        checkpoint = load_plain(path, _CONTAINERS)
    except FileNotFoundError as error:
        raise ConfigError(str(path), "no such file") from error
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror or error}") from error
    except DataError as error:
        raise ConfigError(str(path), f"{error} (read without running code of its own)") from error
    if not isinstance(checkpoint, dict):
        raise ConfigError(str(path), f"expected a dict of a checkpoint, found {type(checkpoint).__name__}")
    return checkpoint
