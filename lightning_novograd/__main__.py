"""`python -m lightning_novograd describe | plot-schedule | convert-checkpoint`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from lightning_novograd.convert_checkpoint import add_convert_checkpoint
from lightning_novograd.errors import LightningNovoGradError


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; user errors are one line on stderr and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m lightning_novograd", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_describe, _add_plot_schedule, add_convert_checkpoint):
        add(commands)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except LightningNovoGradError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _add_describe(commands: Any) -> None:
    command = commands.add_parser("describe", help="what the optim block takes")
    command.add_argument("kind", nargs="?", choices=["optimizer", "scheduler"], help="all, without it")
    command.add_argument("name", nargs="?", help="a registered name: its arguments, defaults and paper")
    command.add_argument("--markdown", action="store_true", help="print docs/optim_block.md")
    command.set_defaults(run=_describe)


def _describe(args: argparse.Namespace) -> None:
    from lightning_novograd import describe
    from lightning_novograd.registry import get_optimizer, get_scheduler

    if args.markdown:
        print(describe.markdown(), end="")
    elif args.name is None:
        print(describe.overview())
    else:
        print(describe.details((get_optimizer if args.kind == "optimizer" else get_scheduler)(args.name, "NAME")))


def _add_plot_schedule(commands: Any) -> None:
    command = commands.add_parser("plot-schedule", help="draw the learning rate of a config")
    command.add_argument(
        "config", type=Path, help="YAML file with an optim block at its top, as optim or as model.optim"
    )
    command.add_argument("--out", type=Path, required=True, help="picture to write, e.g. lr.png")
    command.add_argument("--max-steps", type=int, help="length of the run, where the config leaves it to the trainer")
    command.set_defaults(run=_plot_schedule)


def _plot_schedule(args: argparse.Namespace) -> None:
    from lightning_novograd.schedule_picture import draw

    draw(args.config, args.out, args.max_steps)
    print(args.out)


if __name__ == "__main__":
    sys.exit(main())
