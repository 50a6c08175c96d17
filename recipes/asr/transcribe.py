"""Write down what is said in recordings: ``python recipes/asr/transcribe.py RUN FILE ...``.

One line per file on stdout: path, tab, text; bytes of a path that are not UTF-8 are escaped. A file that cannot be used
is a line on stderr; the others are transcribed all the same. Files are read as the run read its data: any format of
libsndfile, any sample rate, several channels where the run had data.downmix=true. In place of RUN a .nemo archive or a
plain checkpoint will do.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from lightning_novograd.commands.output import writes_to_stdout
from lightning_novograd.errors import DataError, LightningNovoGradError
from lightning_novograd.recipes.asr.data.audio import load_audio
from lightning_novograd.recipes.asr.recognition.recognizer import Recognizer
from lightning_novograd.recipes.asr.recognition.trained_run import TrainedRun, make_parser, shown


@writes_to_stdout
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when every file was transcribed, 1 with a line on stderr for whatever was wrong."""
    parser = make_parser("transcribe", __doc__)
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="a recording: WAV, FLAC, Ogg, MP3, ...")
    arguments = parser.parse_intermixed_args(argv)
    try:
        run = TrainedRun.read(arguments.run)
        recognizer = run.recognizer(run.checkpoint(arguments.checkpoint), arguments.device)
    except LightningNovoGradError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    status = 0
    for file in arguments.files:
        try:
            text = transcribe(recognizer, file, downmix=run.data.loading.downmix)
        except DataError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 1
        else:
            print(shown(file), text, sep="\t", flush=True)
    return status


def transcribe(recognizer: Recognizer, file: Path, downmix: bool = False) -> str:
    """The text of one recording.

    Raises:
        DataError: it is missing, no audio, or has several channels and `downmix` is not set.
    """
    wave = torch.from_numpy(load_audio(file, recognizer.sample_rate, downmix=downmix))
    [text] = recognizer(wave.unsqueeze(0), torch.tensor([len(wave)]))
    return text


if __name__ == "__main__":
    sys.exit(main())
