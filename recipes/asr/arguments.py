"""What the commands for trained models have in common on their command lines."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.recognition.beam import BEAM_SIZE, LM_WEIGHT, WORD_BONUS, BeamDecoder
from lightning_novograd.recipes.asr.text.alphabet import Alphabet


def weights_parser(prog: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments of every command that takes a trained model.

    Args:
        prog: the command's name.
        doc: its module's docstring, for ``--help``.
    """
    summary, _, details = (doc or "").replace("``", "").partition("\n")
    parser = argparse.ArgumentParser(prog=prog, description=summary, epilog=details)
    parser.add_argument(
        "run",
        metavar="RUN",
        type=Path,
        help="the run folder of train.py (its hydra.run.dir), or a model without one: a .nemo or .ckpt file",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="best|last|PATH",
        help="weights of the best epoch by dev WER, of the last one, or in a checkpoint file; default: those that "
        "results.json was measured with (checkpoint.test of the run)",
    )
    return parser


def make_parser(prog: str, doc: str | None) -> argparse.ArgumentParser:
    """One with those of every command that also listens; for `prog` and `doc` see :func:`weights_parser`."""
    parser = weights_parser(prog, doc)
    parser.add_argument(
        "--downmix", action="store_true", help="average the channels of a recording, as data.downmix=true of a run does"
    )
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: auto, a GPU if there is one"
    )
    return parser


def add_average_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--average K`` to a parser that has ``--checkpoint``."""
    parser.add_argument(
        "--average", metavar="K", type=at_least(2), help="the mean of the weights of the K last epochs, or K best"
    )


def add_decoder_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every command that decodes."""
    group = parser.add_argument_group("decoding", "greedy, unless --lm or --beam-size is given")
    group.add_argument("--lm", metavar="FILE.arpa|FILE.bin", type=Path, help="beam search with this KenLM n-gram model")
    group.add_argument(
        "--beam-size", metavar="N", type=int, help=f"hypotheses of the beam search; default: {BEAM_SIZE}"
    )
    group.add_argument(
        "--lm-weight", metavar="W", type=float, help=f"weight of the language model; default: {LM_WEIGHT}"
    )
    group.add_argument(
        "--word-bonus", metavar="B", type=float, help=f"added to the score for each word; default: {WORD_BONUS}"
    )


def make_decoder(arguments: argparse.Namespace, alphabet: Alphabet) -> BeamDecoder | None:
    """The decoder that the arguments ask for; None for greedy.

    Raises:
        ConfigError: an argument is out of range or has no effect; the package is missing.
        DataError: the language model cannot be read.
    """
    if arguments.lm is None:
        for name in ("lm_weight", "word_bonus"):
            if getattr(arguments, name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')}", "has no effect without --lm")
        if arguments.beam_size is None:
            return None
    return BeamDecoder(
        alphabet,
        arguments.lm,
        beam_size=BEAM_SIZE if arguments.beam_size is None else arguments.beam_size,
        lm_weight=LM_WEIGHT if arguments.lm_weight is None else arguments.lm_weight,
        word_bonus=arguments.word_bonus,
    )


def at_least(least: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number from `least` on.

    Example:
        >>> at_least(1)("3")
        3
    """

    def number(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {value}")
        return value

    number.__name__ = "int"  # argparse says it of what is no number
    return number


def check_file(path: Path, option: str = "--out") -> None:
    """Before any work is done: whether a file can be there.

    Raises:
        ConfigError: it cannot.
    """
    if not os.path.isdir(path.parent):
        raise ConfigError(option, f"the folder of {path} does not exist")
    try:
        is_folder = path.is_dir()
    except OSError as error:  # a name that is too long
        raise ConfigError(option, f"{path} cannot be written: {error.strerror}") from None
    if is_folder:
        raise ConfigError(option, f"{path} cannot be written: Is a directory")
