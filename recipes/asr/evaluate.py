"""Count a trained model's errors: ``python recipes/asr/evaluate.py RUN [--manifest FILE.json]``.

Prints WER and CER over a manifest or, without one, over the run's own test set (dev set where it has none), by kinds of
errors, with the bootstrap's 95 % interval and the real-time factor. Audio is read as the run read it, or with
--downmix, and nothing is left out for its length. Relative paths in the run's config begin at the current folder, as
they did in training. Nothing is written unless --out or --report is given. In place of RUN a .nemo archive or a plain
checkpoint will do; it needs --manifest.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_novograd.commands.output import whole_file, writes_to_stdout
from lightning_novograd.errors import ConfigError, LightningNovoGradError
from lightning_novograd.recipes.asr.arguments import (
    add_average_argument,
    add_decoder_arguments,
    at_least,
    check_file,
    make_decoder,
    make_parser,
)
from lightning_novograd.recipes.asr.data.dataset import SpeechDataset
from lightning_novograd.recipes.asr.recognition.beam import BeamDecoder
from lightning_novograd.recipes.asr.recognition.evaluation import (
    count_errors,
    log_probs_of,
    read_set,
    read_tuning_set,
    transcribe_set,
)
from lightning_novograd.recipes.asr.recognition.report.page import render
from lightning_novograd.recipes.asr.recognition.report.published import read_published
from lightning_novograd.recipes.asr.recognition.trained_run import TrainedRun, shown
from lightning_novograd.recipes.asr.recognition.tuning import tune
from lightning_novograd.recipes.asr.text.alignment import EditCounts
from lightning_novograd.recipes.asr.text.normalize import CASES, FORMS


@writes_to_stdout
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when the errors are counted, 1 with a message on stderr when they cannot be."""
    parser = make_parser("evaluate", __doc__)
    parser.add_argument("--manifest", metavar="FILE.json", type=Path, help="measure these utterances instead")
    parser.add_argument(
        "--case",
        choices=[case for case in CASES if case],
        help="of the texts before they are compared, as data.normalize.case of a run",
    )
    parser.add_argument(
        "--unicode", choices=[form for form in FORMS if form], help="likewise, as data.normalize.unicode of a run"
    )
    add_average_argument(parser)
    parser.add_argument("--batch-size", metavar="N", type=at_least(1), help="default: data.eval_batch_size of the run")
    parser.add_argument(
        "--out", metavar="FILE.json", type=Path, help="write the totals and every reference with its hypothesis"
    )
    parser.add_argument(
        "--report",
        metavar="FILE.html",
        type=Path,
        help="write a page: errors by length, speaker and word, the worst ones",
    )
    add_decoder_arguments(parser)
    parser.add_argument(
        "--tune",
        action="store_true",
        help="with --lm: search --lm-weight and --word-bonus on the run's dev set, or on that of --manifest",
    )
    arguments = parser.parse_args(argv)
    try:
        if arguments.tune:
            check_tune(arguments)
        for name, path in (("--out", arguments.out), ("--report", arguments.report)):
            if path is not None:
                check_file(path, name)
        run = TrainedRun.read(arguments.run)
        if arguments.downmix:
            run = run.downmixed()
        if arguments.case or arguments.unicode:
            run = run.normalized(arguments.case, arguments.unicode)
        if arguments.average is None:
            checkpoint = str(run.checkpoint(arguments.checkpoint))
            recognizer = run.recognizer(Path(checkpoint), arguments.device)
        else:
            recognizer, files = run.average(arguments.average, arguments.checkpoint, arguments.device)
            checkpoint = f"mean of {', '.join(map(str, files))}"
        if (decoder := make_decoder(arguments, recognizer.alphabet)) is not None:
            recognizer.decoder = decoder
        read = read_tuning_set if arguments.tune else read_set
        dataset = read(run, recognizer, arguments.manifest)
        loading = run.data.loading
        batch_size = arguments.batch_size or loading.eval_batch_size or loading.batch_size
        tuned, took = None, None
        if arguments.tune and decoder is not None:
            log_probs = log_probs_of(recognizer, dataset, batch_size, loading.num_workers)
            tuned = tune(recognizer, decoder, log_probs, [u.text for u in dataset.utterances])
            hypotheses, decoder = tuned.hypotheses, tuned.decoder
            recognizer.decoder = decoder
        else:
            started = time.perf_counter()
            hypotheses = transcribe_set(recognizer, dataset, batch_size, loading.num_workers)
            took = time.perf_counter() - started
        errors = count_errors(dataset, hypotheses)
        totals = {
            "checkpoint": checkpoint,
            **errors,
            "decoder": "greedy" if decoder is None else decoder.describe(),
            "real_time_factor": took / errors["audio_seconds"] if took and errors["audio_seconds"] else None,
        }
        if tuned is not None:
            on = "the dev set of the run" if arguments.manifest is None else "--manifest"
            best, trials = tuned.best._asdict(), [trial._asdict() for trial in tuned.trials]
            totals["tuning"] = {"set": on, "best": best, "trials": trials}
            show_tuning(totals, how_to_transcribe(arguments, tuned.decoder))
        show(totals)
        if arguments.out is not None:
            write(arguments.out, totals, dataset, hypotheses)
        if arguments.report is not None:
            published = read_published(arguments.run, Path(totals["manifest"]))
            save(arguments.report, render(recognizer, dataset, hypotheses, totals, published), "--report")
    except LightningNovoGradError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def check_tune(arguments: argparse.Namespace) -> None:
    """Whether there is something to tune.

    Raises:
        ConfigError: there is no language model, or a weight is given as if it were known.
    """
    if arguments.lm is None:
        raise ConfigError("--tune", "has no effect without --lm")
    for name in ("--lm-weight", "--word-bonus"):
        if getattr(arguments, name[2:].replace("-", "_")) is not None:
            raise ConfigError(name, "has no effect with --tune, which searches it")


def how_to_transcribe(arguments: argparse.Namespace, decoder: BeamDecoder) -> str:
    """The command line that decodes with the weights that were found."""
    words = ["python", "recipes/asr/transcribe.py", shown(arguments.run), "FILE..."]
    if arguments.average is not None:  # transcribe takes weights of one epoch, or of average.ckpt
        words[1:] = ["recipes/asr/evaluate.py", shown(arguments.run), "--average", str(arguments.average)]
    if arguments.checkpoint is not None:
        words += ["--checkpoint", arguments.checkpoint]
    if arguments.downmix:
        words.append("--downmix")
    words += ["--lm", shown(arguments.lm), "--beam-size", str(decoder.beam_size)]
    words += ["--lm-weight", f"{decoder.lm_weight:g}"]
    if decoder.word_bonus is not None:
        words += ["--word-bonus", f"{decoder.word_bonus:g}"]
    return " ".join(word if word == "FILE..." else shlex.quote(word) for word in words)


def show_tuning(totals: dict[str, Any], command: str) -> None:
    """Print the table of what was tried, and what to do with the best."""
    tuning = totals["tuning"]
    print("lm-weight  word-bonus      WER      CER")
    for trial in tuning["trials"]:
        bonus = "-" if trial["word_bonus"] is None else f"{trial['word_bonus']:g}"
        print(
            f"{trial['lm_weight']:9g}  {bonus:>10}  {100 * trial['wer']:5.2f} %  {100 * trial['cer']:5.2f} %"
            f"{'  best' if trial == tuning['best'] else ''}"
        )
    print(f"tuned on    {tuning['set']}; measure the weights on another set")
    print(f"use them    {command}")


def show(totals: dict[str, Any]) -> None:
    """Print the totals, a line each."""
    print(f"checkpoint  {shown(totals['checkpoint'])}")
    print(f"manifest    {shown(totals['manifest'])}")
    print(f"decoder     {shown(totals['decoder'])}")
    print(f"utterances  {totals['num_utterances']}")
    for rate, unit, units in (("wer", "word", "words"), ("cer", "char", "characters")):
        errors, kinds = totals[f"{unit}_errors"], (totals[f"{unit}_{kind}"] for kind in EditCounts._fields)
        insertions, deletions, substitutions = kinds
        print(
            f"{rate.upper()} {100 * totals[rate]:11.2f} %   {errors} errors in {totals[f'{unit}s']} {units}: "
            f"{substitutions} substituted, {deletions} deleted, {insertions} inserted"
        )
    if totals["wer_interval"] is not None:
        low, high = totals["wer_interval"]
        print(f"interval    {100 * low:.2f} to {100 * high:.2f} % WER, 95 %, bootstrap")
    if totals["real_time_factor"] is not None:
        print(f"RTF {totals['real_time_factor']:11.3f}     {totals['audio_seconds']:.1f} s of audio")


def write(path: Path, totals: dict[str, Any], dataset: SpeechDataset, hypotheses: Sequence[str]) -> None:
    """Write the totals and the texts as JSON.

    Raises:
        ConfigError: the file cannot be written.
    """
    texts = [
        {"audio_filepath": str(u.audio), "offset": u.offset, "reference": u.text, "hypothesis": hypothesis}
        for u, hypothesis in zip(dataset.utterances, hypotheses, strict=True)
    ]
    save(path, json.dumps({**totals, "utterances": texts}, indent=2, ensure_ascii=False) + "\n", "--out")


def save(path: Path, text: str, option: str) -> None:
    """Write a whole file.

    Raises:
        ConfigError: it cannot be written.
    """
    content = text.encode("utf-8", "backslashreplace")  # a name that is not UTF-8: JSON has the same escapes
    try:
        with whole_file(path) as partial:
            partial.write_bytes(content)
    except ConfigError as error:
        raise ConfigError(option, f"{path} {error.problem}") from None


if __name__ == "__main__":
    sys.exit(main())
