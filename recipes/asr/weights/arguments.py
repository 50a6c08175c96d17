"""Arguments of commands that choose weights."""

import argparse


def add_average_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--average K`` to a parser that has ``--checkpoint``."""
    parser.add_argument(
        "--average", metavar="K", type=_several, help="the mean of the weights of the K last epochs, or K best"
    )


def _several(text: str) -> int:
    if (number := int(text)) < 2:
        raise argparse.ArgumentTypeError(f"must be at least 2, not {number}")
    return number
