"""Write a trained model for other programs: ``python recipes/asr/export.py RUN --out model.nemo|model.onnx|model.pt2``.

RUN is a run folder of train.py, a .ckpt or a .nemo file. nemo is an archive that NeMo's EncDecCTCModel.restore_from
loads; onnx and torch (torch.export) take waveforms, any number of any length, and give log-probabilities: the features
are inside. What was written is read again and compared with the model. The file is there whole or not at all.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from lightning_novograd.commands.output import check_folder, whole_file, writes_to_stdout
from lightning_novograd.errors import ConfigError, DataError, LightningNovoGradError
from lightning_novograd.recipes.asr.arguments import add_average_argument, weights_parser
from lightning_novograd.recipes.asr.model.jasper import JasperCTC
from lightning_novograd.recipes.asr.weights.nemo import load_nemo
from lightning_novograd.recipes.asr.weights.nemo_writer import write_nemo
from lightning_novograd.recipes.asr.weights.program import write_onnx, write_program
from lightning_novograd.recipes.asr.weights.source import choose_checkpoint, load_average, load_file

SUFFIXES = {".nemo": "nemo", ".onnx": "onnx", ".pt2": "torch"}


@writes_to_stdout
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when the file is written, 1 with a line on stderr when it is not."""
    arguments = _parser().parse_args(argv)
    try:
        check_folder(arguments.out)
        write = WRITERS[_format(arguments.format, arguments.out)]
        if arguments.average is None:
            file = choose_checkpoint(arguments.run, arguments.checkpoint)
            model, said = load_file(file), str(file)
        else:
            model, files = load_average(arguments.run, arguments.checkpoint, arguments.average)
            said = f"the mean of {', '.join(map(str, files))}"
        difference = write(model, arguments.out)
    except LightningNovoGradError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.out}: weights of {said}; read again, its log-probabilities differ by at most {difference:.1g}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = weights_parser("export", __doc__)
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="the file to write")
    parser.add_argument("--format", choices=list(WRITERS), help="default: what the suffix of --out says")
    add_average_argument(parser)
    return parser


def _format(given: str | None, out: Path) -> str:
    if given is None and out.suffix not in SUFFIXES:
        allowed = ", ".join(SUFFIXES)
        raise ConfigError("--out", f"{str(out)!r} has none of the suffixes {allowed}: say --format")
    return given or SUFFIXES[out.suffix]


def write_and_read_nemo(model: JasperCTC, path: Path) -> float:
    """Write a ``.nemo`` archive; it holds the very same weights.

    Raises:
        ConfigError: the file cannot be written.
        DataError: what was written is not the model.
    """
    with whole_file(path) as partial:
        write_nemo(model, partial)
        found = load_nemo(partial).state_dict()
        if not all(torch.equal(value, found[name]) for name, value in model.state_dict().items()):
            raise DataError(f"{path} would hold other weights than the model")
    return 0.0


WRITERS: dict[str, Callable[[JasperCTC, Path], float]] = {
    "nemo": write_and_read_nemo,
    "onnx": write_onnx,
    "torch": write_program,
}


if __name__ == "__main__":
    sys.exit(main())
