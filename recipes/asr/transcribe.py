"""Write down what is said in recordings: ``python recipes/asr/transcribe.py RUN FILE ...``.

One line per file on stdout: path, tab, text; bytes of a path that are not UTF-8 are escaped. With --format json it is a
JSON object with the words and their times, with --format srt subtitles. A file that cannot be used is a line on stderr;
the others are transcribed all the same. Files are read as the run read its data: any format of libsndfile, any sample
rate, several channels with --downmix or where the run had data.downmix=true. Long recordings are cut where it is quiet.
The last line on stderr is the time that it took. In place of RUN a .nemo archive or a plain checkpoint will do.
"""

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lightning_novograd.commands.output import whole_file, writes_to_stdout
from lightning_novograd.errors import ConfigError, DataError, LightningNovoGradError
from lightning_novograd.recipes.asr.arguments import add_decoder_arguments, at_least, make_decoder, make_parser
from lightning_novograd.recipes.asr.recognition.formats import json_line, srt, text_line
from lightning_novograd.recipes.asr.recognition.segments import LONGEST, SHORTEST
from lightning_novograd.recipes.asr.recognition.trained_run import TrainedRun
from lightning_novograd.recipes.asr.recognition.transcription import transcribe_files
from lightning_novograd.recipes.asr.recognition.words import separator

LINES = {"text": text_line, "json": json_line}


@writes_to_stdout
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when every file was transcribed, 1 with a line on stderr for whatever was wrong."""
    parser = make_parser("transcribe", __doc__)
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="a recording: WAV, FLAC, Ogg, MP3, ...")
    parser.add_argument(
        "--format",
        choices=["text", "json", "srt"],
        default="text",
        help="default: text; json: a line per file with words, times (s) and confidences; srt: subtitles",
    )
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="for srt: write FILE.srt there for each FILE")
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=at_least(1),
        default=1,
        help="recordings, or pieces of them, at once; default: 1",
    )
    parser.add_argument(
        "--segment-seconds",
        metavar="S",
        type=_segment,
        help="longer recordings are cut into pieces of at most that; default: as long as the longest utterance in the "
        f"training, from {SHORTEST:g} to {LONGEST:g}",
    )
    add_decoder_arguments(parser)
    arguments = parser.parse_intermixed_args(argv)
    try:
        check_out(arguments.format, arguments.out, arguments.files)
        run = TrainedRun.read(arguments.run)
        if arguments.downmix:
            run = run.downmixed()
        checkpoint = run.checkpoint(arguments.checkpoint)
        recognizer = run.recognizer(checkpoint, arguments.device)
        longest = arguments.segment_seconds or run.segment_seconds(checkpoint)
        if (decoder := make_decoder(arguments, recognizer.alphabet)) is not None:
            recognizer.decoder = decoder
        space = separator(recognizer.alphabet)
    except LightningNovoGradError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    status, done, seconds = 0, 0, 0.0
    started = time.perf_counter()
    downmix = run.data.loading.downmix
    options = {"batch_size": arguments.batch_size, "longest": longest}
    for transcript in transcribe_files(recognizer, arguments.files, downmix, **options):
        try:
            if isinstance(transcript, DataError):
                raise transcript
            if arguments.out is not None:
                write(arguments.out / f"{transcript.file.stem}.srt", srt(transcript, space))
            else:
                line = srt(transcript, space) if arguments.format == "srt" else LINES[arguments.format](transcript)
                print(line, end="", flush=True)
        except LightningNovoGradError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 1
        else:
            done, seconds = done + 1, seconds + transcript.duration
    if done:
        took = time.perf_counter() - started
        factor = f": real-time factor {took / seconds:.3f}" if seconds else ""
        print(f"{done} recording{'s' * (done > 1)}, {seconds:.1f} s of audio in {took:.1f} s{factor}", file=sys.stderr)
    return status


def check_out(form: str, folder: Path | None, files: Sequence[Path]) -> None:
    """Before any work is done: whether the transcripts have a place each.

    Raises:
        ConfigError: subtitles of several files go to one stream, two of them to one file, or there is no such folder.
    """
    if folder is None:
        if form == "srt" and len(files) > 1:
            raise ConfigError("--format", "srt of several files needs --out FOLDER, one file for each")
        return
    if form != "srt":
        raise ConfigError("--out", f"is for --format srt; {form} goes to stdout, a line for each file")
    try:
        is_folder = folder.is_dir()
    except OSError:  # a name that is too long
        is_folder = False
    if not is_folder:
        raise ConfigError("--out", f"the folder {folder} does not exist")
    stem, count = Counter(file.stem for file in files).most_common(1)[0]
    if count > 1:
        raise ConfigError("--out", f"{count} of the files would be written to {stem}.srt")


def write(path: Path, text: str) -> None:
    """Write a whole file.

    Raises:
        ConfigError: it cannot be written.
    """
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _segment(text: str) -> float:
    if not SHORTEST <= (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"must be at least {SHORTEST:g}, not {text}")
    return number


if __name__ == "__main__":
    sys.exit(main())
