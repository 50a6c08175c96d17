"""Manifests: one JSON object per line and utterance, as NeMo has them."""

import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_novograd.errors import DataError, printable
from lightning_novograd.log import rank_zero_logger
from lightning_novograd.recipes.asr.data.audio import Header, check_channels, read_header, resampled_length
from lightning_novograd.recipes.asr.text.alphabet import Alphabet, min_ctc_frames

log = rank_zero_logger(__name__)

REQUIRED = ("audio_filepath", "duration", "text")
DURATION_TOLERANCE = 0.1  # s; manifests round their durations, to one decimal at worst
REPORTED = 5  # bad lines quoted in an error
QUOTED = 60  # characters of a bad value quoted in an error


@dataclass(frozen=True, slots=True)
class Utterance:
    """One line of a manifest.

    Args:
        audio: the recording.
        duration: s.
        text: what is said.
        line: 1-based line in the manifest.
        manifest: the manifest itself.
        offset: s, where the utterance begins in the recording; None means that it is the whole recording.
    """

    audio: Path
    duration: float
    text: str
    line: int
    manifest: Path
    offset: float | None = None

    @property
    def where(self) -> str:
        """``manifest:line``, for messages."""
        return f"{self.manifest}:{self.line}"


def read_manifest(
    path: str | Path,
    alphabet: Alphabet,
    *,
    sample_rate: int = 16000,
    samples_to_frames: Callable[[Tensor], Tensor] | None = None,
    min_duration: float | None = None,
    max_duration: float | None = None,
    keep_all: bool = False,
    downmix: bool = False,
    header_of: Callable[[Path], Header] = read_header,
    normalize: Callable[[str], str] = str,
) -> list[Utterance]:
    """The utterances of a manifest, every one of them checked.

    Each line is an object with `audio_filepath` (absolute, or relative to the manifest's folder), `duration` (s) and
    `text`; with `offset` (s) the utterance is the part of the recording from there on that `duration` says, without
    it the whole recording. Other keys are metadata and are not used. Blank lines are passed over.

    Args:
        path: the manifest.
        alphabet: characters that texts may have.
        sample_rate: Hz, the rate of the model.
        samples_to_frames: output frames of the model for numbers of samples, both int64 of shape (N,), as
            `JasperCTC.output_lengths`; None skips the check of lengths.
        min_duration: s; shorter utterances are left out, and counted in the log. None keeps all.
        max_duration: s; likewise for longer ones.
        keep_all: only count the utterances outside these limits: a set to measure on is not made easier.
        downmix: accept recordings with several channels.
        header_of: asks a recording for its header, such as `Headers`, which remembers them.
        normalize: what is made of each text before it is compared with the alphabet.

    Raises:
        DataError: there is no manifest, nothing in it, or lines in it are bad: not JSON, lacking a key, of a wrong
            type, an empty text or one outside the alphabet, audio that is missing, corrupt, of another duration than
            stated, or too short for its text under CTC. The first bad lines are quoted, all are counted.

    Source: NeMo's manifest format. NeMo replaces or drops what it cannot use; here it is an error.
    """
    path = Path(path)
    utterances, bad = _parse(path, alphabet, normalize)
    lines = len(utterances) + len(bad)
    if not lines:
        raise DataError(f"manifest {path} is empty")
    utterances = _filter(path, utterances, min_duration, max_duration, keep_all)
    headers = _read_headers(utterances, downmix, bad, header_of)
    utterances = [u for u in utterances if u.line in headers]
    if samples_to_frames is not None and utterances:
        samples = [_model_samples(u, headers[u.line], sample_rate) for u in utterances]
        frames = torch.as_tensor(samples_to_frames(torch.tensor(samples))).tolist()
        for utterance, available in zip(utterances, frames, strict=True):
            needed = min_ctc_frames(utterance.text)
            if needed > available:
                bad[utterance.line] = (
                    f"{utterance.duration:g} s of audio give {available} output frames, but the text "
                    f"{utterance.text!r} needs {needed} under CTC (one per character, a blank between equal ones)"
                )
    if bad:
        raise DataError(_report(path, bad, lines))
    if not utterances:
        raise DataError(f"manifest {path}: min_duration and max_duration leave none of its {lines} utterances")
    other_rates = sorted({h.sample_rate for h in headers.values()} - {sample_rate})
    if other_rates:
        log.info(
            "%s: audio at %s Hz is resampled to %d Hz", printable(path), ", ".join(map(str, other_rates)), sample_rate
        )
    return utterances


def read_rows(path: Path, what: str = "manifest") -> list[tuple[int, str]]:
    """The lines of a manifest that are not blank, with their numbers from 1 on.

    Args:
        path: the file.
        what: how messages call it.

    Raises:
        DataError: it cannot be read.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: bytes that are no UTF-8, or a zero byte in the name
        raise DataError(f"{what} {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    # not splitlines, which would cut a text at U+2028
    return [(line, row) for line, row in enumerate(content.split("\n"), start=1) if row.strip()]


def parse_row(row: str) -> dict[str, Any]:
    """The object in a line of a manifest.

    Raises:
        DataError: there is none.

    Example:
        >>> parse_row('{"text": "one"}')
        {'text': 'one'}
    """
    try:
        entry = json.loads(row)
    except json.JSONDecodeError as error:
        raise DataError(f"is not JSON: {error.msg} at column {error.colno}") from None
    except ValueError:  # Python's guard against numbers that take long to convert
        raise DataError(f"has a number of more than {sys.get_int_max_str_digits()} digits") from None
    except RecursionError:
        raise DataError(f"is nested too deeply: {row.strip()[:QUOTED]}") from None
    if not isinstance(entry, dict):
        raise DataError(f"is not a JSON object but {row.strip()[:QUOTED]}")
    return entry


def _parse(path: Path, alphabet: Alphabet, normalize: Callable[[str], str]) -> tuple[list[Utterance], dict[int, str]]:
    """Utterances of the good lines, and what is wrong with the others by line number."""
    if not os.path.exists(path):
        raise DataError(f"manifest {path} does not exist")
    utterances, bad = [], {}
    for line, row in read_rows(path):
        try:
            utterances.append(_parse_line(row, line, path, alphabet, normalize))
        except DataError as error:
            bad[line] = str(error)
    return utterances, bad


def _parse_line(row: str, line: int, manifest: Path, alphabet: Alphabet, normalize: Callable[[str], str]) -> Utterance:
    entry = parse_row(row)
    for key in REQUIRED:
        if key not in entry:
            raise DataError(f"lacks the key {key!r}; it has {', '.join(map(repr, entry)) or 'no keys'}")
    audio, text = entry["audio_filepath"], entry["text"]
    if not isinstance(audio, str) or not audio:
        raise DataError(f"audio_filepath must be a path, not {_quoted(audio)}")
    if not isinstance(text, str):
        raise DataError(f"text must be a string, not {_quoted(text)}")
    if not text.strip():
        raise DataError("text is empty; remove the line if nothing is said in the recording")
    text = normalize(text)
    alphabet.encode(text)
    duration = _seconds(entry, "duration")
    if duration <= 0:
        raise DataError(f"duration must be positive, not {duration:g}")
    offset = _seconds(entry, "offset") if entry.get("offset") is not None else None
    if offset is not None and offset < 0:
        raise DataError(f"offset must not be negative, but is {offset:g}")
    # not pathlib's expanduser, which raises for ~name of no user
    return Utterance(manifest.parent / os.path.expanduser(audio), duration, text, line, manifest, offset)


def _seconds(entry: Mapping[str, Any], key: str) -> float:
    value = entry[key]
    try:
        seconds = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:  # a whole number beyond what a float holds
        seconds = math.inf
    if not math.isfinite(seconds):
        raise DataError(f"{key} must be a number of seconds, not {_quoted(value)}")
    return seconds


def _quoted(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= QUOTED else f"{shown[:QUOTED]}..."


def _filter(
    path: Path, utterances: list[Utterance], min_duration: float | None, max_duration: float | None, keep_all: bool
) -> list[Utterance]:
    low, high = min_duration or 0.0, math.inf if max_duration is None else max_duration
    inside = [u for u in utterances if low <= u.duration <= high]
    if len(inside) < len(utterances):
        log.info(
            "%s: %d of %d utterances are outside %g to %g s and are %s",
            printable(path),
            len(utterances) - len(inside),
            len(utterances),
            low,
            high,
            "kept: the limits are for training" if keep_all else "left out",
        )
    return utterances if keep_all else inside


def _read_headers(
    utterances: list[Utterance], downmix: bool, bad: dict[int, str], header_of: Callable[[Path], Header]
) -> dict[int, Header]:
    """Headers by line; what is wrong with the others is added to `bad`."""

    def check(utterance: Utterance) -> Header | str:
        try:
            header = header_of(utterance.audio)
            _check_header(utterance, header, downmix)
        except DataError as error:
            return str(error)
        return header

    with ThreadPoolExecutor(max_workers=min(16, 2 * (os.cpu_count() or 1))) as pool:
        results = dict(zip((u.line for u in utterances), pool.map(check, utterances), strict=True))
    bad.update({line: result for line, result in results.items() if isinstance(result, str)})
    return {line: result for line, result in results.items() if isinstance(result, Header)}


def _check_header(utterance: Utterance, header: Header, downmix: bool) -> None:
    check_channels(utterance.audio, header.channels, downmix)
    if utterance.offset is not None and utterance.offset >= header.seconds:
        raise DataError(
            f"offset is {utterance.offset:g} s, but the audio file {utterance.audio} lasts {header.seconds:g} s"
        )
    stated = utterance.duration if utterance.offset is None else utterance.offset + utterance.duration
    excess = stated - header.seconds
    if excess > DURATION_TOLERANCE or (utterance.offset is None and -excess > DURATION_TOLERANCE):
        end = "duration is" if utterance.offset is None else "offset and duration reach"
        raise DataError(f"{end} {stated:g} s, but the audio file {utterance.audio} lasts {header.seconds:g} s")
    if utterance.offset is not None and _part(utterance, header) < 1:
        raise DataError(f"duration is {utterance.duration:g} s, which is no sample of the audio file {utterance.audio}")


def _part(utterance: Utterance, header: Header) -> int:
    """Samples of the part that an utterance with an offset is, at the rate of the recording."""
    start = round((utterance.offset or 0.0) * header.sample_rate)
    return min(header.samples - start, round(utterance.duration * header.sample_rate))


def _model_samples(utterance: Utterance, header: Header, sample_rate: int) -> int:
    samples = header.samples if utterance.offset is None else _part(utterance, header)
    return resampled_length(samples, header.sample_rate, sample_rate)


def _report(path: Path, bad: Mapping[int, str], lines: int) -> str:
    quoted = [f"{path}:{line}: {bad[line]}" for line in sorted(bad)[:REPORTED]]
    if len(bad) == 1:
        return quoted[0]
    more = [f"... and {len(bad) - REPORTED} more"] if len(bad) > REPORTED else []
    return "\n  ".join([f"{len(bad)} of {lines} lines of {path} are bad:", *quoted, *more])
