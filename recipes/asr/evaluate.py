"""Count a trained model's errors: ``python recipes/asr/evaluate.py RUN [--manifest FILE.json]``.

Prints WER and CER over a manifest or, without one, over the run's own test set (dev set where it has none). Audio is
read as the run read it (data.downmix, data.min_duration, ...); relative paths in the run's config begin at the current
folder, as they did in training. Nothing is written unless --out is given. In place of RUN a .nemo archive or a plain
checkpoint will do; it needs --manifest.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_novograd.commands.output import whole_file, writes_to_stdout
from lightning_novograd.errors import ConfigError, LightningNovoGradError
from lightning_novograd.recipes.asr.data.dataset import SpeechDataset
from lightning_novograd.recipes.asr.recognition.evaluation import count_errors, read_set, transcribe_set
from lightning_novograd.recipes.asr.recognition.trained_run import TrainedRun, make_parser, shown
from lightning_novograd.recipes.asr.weights.arguments import add_average_argument


@writes_to_stdout
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when the errors are counted, 1 with a message on stderr when they cannot be."""
    parser = make_parser("evaluate", __doc__)
    parser.add_argument("--manifest", metavar="FILE.json", type=Path, help="measure these utterances instead")
    add_average_argument(parser)
    parser.add_argument("--batch-size", metavar="N", type=_positive, help="default: data.eval_batch_size of the run")
    parser.add_argument(
        "--out", metavar="FILE.json", type=Path, help="write the totals and every reference with its hypothesis"
    )
    arguments = parser.parse_args(argv)
    try:
        if arguments.out is not None:
            check_out(arguments.out)
        run = TrainedRun.read(arguments.run)
        if arguments.average is None:
            checkpoint = str(run.checkpoint(arguments.checkpoint))
            recognizer = run.recognizer(Path(checkpoint), arguments.device)
        else:
            recognizer, files = run.average(arguments.average, arguments.checkpoint, arguments.device)
            checkpoint = f"mean of {', '.join(map(str, files))}"
        dataset = read_set(run, recognizer, arguments.manifest)
        loading = run.data.loading
        batch_size = arguments.batch_size or loading.eval_batch_size or loading.batch_size
        hypotheses = transcribe_set(recognizer, dataset, batch_size, loading.num_workers)
        totals = {"checkpoint": checkpoint, **count_errors(dataset, hypotheses)}
        show(totals)
        if arguments.out is not None:
            write(arguments.out, totals, dataset, hypotheses)
    except LightningNovoGradError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def show(totals: dict[str, Any]) -> None:
    """Print the totals, a line each."""
    print(f"checkpoint  {shown(totals['checkpoint'])}")
    print(f"manifest    {shown(totals['manifest'])}")
    print(f"utterances  {totals['num_utterances']}")
    print(f"WER {100 * totals['wer']:11.2f} %   {totals['word_errors']} errors in {totals['words']} words")
    print(f"CER {100 * totals['cer']:11.2f} %   {totals['char_errors']} errors in {totals['chars']} characters")


def write(path: Path, totals: dict[str, Any], dataset: SpeechDataset, hypotheses: Sequence[str]) -> None:
    """Write the totals and the texts as JSON.

    Raises:
        ConfigError: the file cannot be written.
    """
    texts = [
        {"audio_filepath": str(u.audio), "offset": u.offset, "reference": u.text, "hypothesis": hypothesis}
        for u, hypothesis in zip(dataset.utterances, hypotheses, strict=True)
    ]
    document = json.dumps({**totals, "utterances": texts}, indent=2, ensure_ascii=False) + "\n"
    content = document.encode("utf-8", "backslashreplace")  # a name that is not UTF-8: JSON has the same escapes
    try:
        with whole_file(path) as partial:
            partial.write_bytes(content)
    except ConfigError as error:
        raise ConfigError("--out", f"{path} {error.problem}") from None


def check_out(path: Path) -> None:
    """Before any work is done: whether a file can be there.

    Raises:
        ConfigError: it cannot.
    """
    if not os.path.isdir(path.parent):
        raise ConfigError("--out", f"the folder of {path} does not exist")
    try:
        is_folder = path.is_dir()
    except OSError as error:  # a name that is too long
        raise ConfigError("--out", f"{path} cannot be written: {error.strerror}") from None
    if is_folder:
        raise ConfigError("--out", f"{path} cannot be written: Is a directory")


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


if __name__ == "__main__":
    sys.exit(main())
