"""`python -m lightning_novograd describe | plot-schedule | convert-checkpoint`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from lightning_novograd.commands.convert_checkpoint import add_convert_checkpoint
from lightning_novograd.commands.output import writes_to_stdout
from lightning_novograd.errors import ConfigError, LightningNovoGradError, choices


@writes_to_stdout
def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; user errors are one line on stderr and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m lightning_novograd", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="describe|plot-schedule|convert-checkpoint")
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
    command.add_argument(
        "kind", nargs="?", metavar="optimizer|scheduler", help="all of the kind, or of both without it; may be left out"
    )
    command.add_argument("name", nargs="?", help="a registered name: its arguments, defaults and paper")
    command.add_argument("--markdown", action="store_true", help="print docs/optim_block.md")
    command.add_argument(
        "--model",
        metavar="module:Class",
        help="a model, or a function that returns one, made without arguments; before the YAML file of an optim block: "
        "which of its parameters go into which param group",
    )
    command.set_defaults(run=_describe)


def _describe(args: argparse.Namespace) -> None:
    from lightning_novograd.commands import describe
    from lightning_novograd.registry import get_optimizer, get_scheduler

    kinds = {"optimizer": get_optimizer, "scheduler": get_scheduler}
    if args.model is not None:
        from lightning_novograd.commands.model_groups import describe_model

        if args.kind is None or args.name is not None:
            raise ConfigError("--model", "give one YAML file with the optim block")
        print(describe_model(args.model, Path(args.kind)))
    elif args.markdown:
        print(describe.markdown(), end="")
    elif args.kind in (None, *kinds) and args.name is None:
        print(describe.overview(args.kind))
    elif args.name is None:
        print(describe.details(describe.entry_of(args.kind)))
    elif args.kind not in kinds:
        raise ConfigError("", f"describe {args.kind} {args.name}: unknown kind{choices(args.kind, kinds)}")
    else:
        print(describe.details(kinds[args.kind](args.name, "")))


def _add_plot_schedule(commands: Any) -> None:
    command = commands.add_parser(
        "plot-schedule",
        help="draw the learning rate of a config",
        description="Draw the learning rate that an optim block gives, a line per param group, phases marked, "
        "several blocks below each other. No model is built. The picture is as long as the run; without the options "
        "that say it, as the schedule.",
    )
    command.add_argument(
        "config",
        type=Path,
        help="YAML file with an optim block at its top, as optim, as model.optim or as model.init_args.optim, or with "
        "a schedule alone, drawn for an lr of 1; of a Hydra program, what it prints with --cfg job --resolve",
    )
    command.add_argument("--out", type=Path, required=True, help="picture to write; the suffix is its format: lr.png")
    command.add_argument("--max-steps", type=int, metavar="N", help="optimizer steps of the run, as the Trainer's")
    command.add_argument("--max-epochs", type=int, metavar="N", help="epochs of the run, as the Trainer's")
    command.add_argument(
        "--steps-per-epoch",
        type=int,
        metavar="N",
        help="optimizer steps in an epoch, batches / accumulation: where epochs and steps must be converted",
    )
    command.set_defaults(run=_plot_schedule)


def _plot_schedule(args: argparse.Namespace) -> None:
    from lightning_novograd.commands.plot_schedule import RunOptions, draw

    run = RunOptions(max_steps=args.max_steps, max_epochs=args.max_epochs, steps_per_epoch=args.steps_per_epoch)
    draw(args.config, args.out, run)
    print(args.out)


if __name__ == "__main__":
    sys.exit(main())
