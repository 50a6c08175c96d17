"""Audio files to samples at the model's rate."""

import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from lightning_novograd.errors import DataError

SAMPLE_RATES = (1_000, 1_000_000)  # Hz; at rates beyond, which only a damaged header has, resampling would not end
BLOCK = 1 << 22  # samples decoded at a time: a header may claim any number


class Header(NamedTuple):
    """What an audio file says about itself."""

    samples: int
    sample_rate: int
    channels: int

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return self.samples / self.sample_rate


def read_header(path: Path) -> Header:
    """The header of an audio file, without decoding it.

    Raises:
        DataError: there is no such file, or no audio in it.
    """
    if not os.path.isfile(path):  # pathlib would raise for a name that is too long
        raise DataError(f"audio file {path} does not exist")
    try:
        # soundfile would encode a text, and fail at a name that is not UTF-8
        info = soundfile.info(os.fsencode(path))
    except soundfile.LibsndfileError as error:
        raise DataError(f"audio file {path} cannot be read: {error.error_string}") from error
    if info.frames <= 0:
        raise DataError(f"audio file {path} holds no samples")
    return check_header(path, Header(info.frames, info.samplerate, info.channels))


def check_header(path: Path, header: Header) -> Header:
    """The header, unless it claims what no recording has.

    Raises:
        DataError: the sample rate is absurd.
    """
    low, high = SAMPLE_RATES
    if not low <= header.sample_rate <= high:
        raise DataError(
            f"audio file {path} has a sample rate of {header.sample_rate} Hz; it must be from {low} to {high}"
        )
    return header


def check_channels(path: Path, channels: int, downmix: bool) -> None:
    """Refuse several channels unless they are to be averaged.

    Raises:
        DataError: there are several.
    """
    if channels > 1 and not downmix:
        raise DataError(f"audio file {path} has {channels} channels; data.downmix=true (--downmix) averages them")


def resampled_length(samples: int, source_rate: int, sample_rate: int) -> int:
    """Number of samples after resampling."""
    return samples if source_rate == sample_rate else round(samples * sample_rate / source_rate)


def load_audio(
    path: Path,
    sample_rate: int,
    *,
    offset: float = 0.0,
    duration: float | None = None,
    downmix: bool = False,
    keep_nonfinite: bool = False,
) -> np.ndarray:
    """Samples of a file, or of a part of it, as float32 in [-1, 1], shape (samples,).

    The level stays as it is recorded: the features are normalized per utterance.

    Args:
        path: any format libsndfile reads (FLAC, WAV, Ogg, MP3, ...).
        sample_rate: Hz; a file at another rate is resampled by soxr (HQ).
        offset: s, where the part begins.
        duration: s, how long the part is; None reads to the end.
        downmix: average the channels of a file that has several, which is an error otherwise.
        keep_nonfinite: hand on samples that are NaN or infinite, as a file of floats may have them.

    Raises:
        DataError: the file is missing, corrupt, shorter than it claims, has several channels, or samples that are not
            finite.
    """
    if not os.path.isfile(path):  # pathlib would raise for a name that is too long
        raise DataError(f"audio file {path} does not exist")
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:
            header = check_header(path, Header(file.frames, file.samplerate, file.channels))
            start = min(round(offset * header.sample_rate), header.samples)
            wanted = header.samples - start
            if duration is not None:
                wanted = min(wanted, round(duration * header.sample_rate))
            file.seek(start)
            wave = _read(file, wanted)
    except soundfile.LibsndfileError as error:
        raise DataError(f"audio file {path} is corrupt: {error.error_string}") from error
    check_channels(path, header.channels, downmix)
    if len(wave) != wanted or wanted <= 0:
        raise DataError(f"audio file {path} is corrupt: {len(wave)} of {wanted} samples can be read")
    if not keep_nonfinite:
        check_finite(path, wave, start, header.sample_rate)
    mono = wave[:, 0] if wave.shape[1] == 1 else wave.mean(axis=1)
    if header.sample_rate != sample_rate:
        mono = soxr.resample(mono, header.sample_rate, sample_rate)
    return np.ascontiguousarray(mono, dtype=np.float32)


def _read(file: soundfile.SoundFile, wanted: int) -> np.ndarray:
    """Up to `wanted` samples, shape (samples, channels): fewer where the file ends before."""
    blocks = [file.read(min(wanted, BLOCK), dtype="float32", always_2d=True)]
    while len(blocks[-1]) == BLOCK and (left := wanted - BLOCK * len(blocks)) > 0:
        blocks.append(file.read(min(left, BLOCK), dtype="float32", always_2d=True))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def check_finite(path: Path, wave: np.ndarray, start: int, sample_rate: int) -> None:
    """Refuse samples that are NaN or infinite, as a file of floats may have them.

    Args:
        path: the file, for messages.
        wave: samples, shape (samples, channels).
        start: of the first of them, in the file.
        sample_rate: Hz, of the file.

    Raises:
        DataError: there are some.
    """
    with np.errstate(all="ignore"):
        if math.isfinite(wave.sum()):  # one pass, and no array of booleans
            return
    bad = ~np.isfinite(wave).all(axis=1)
    if bad.any():
        first = (start + int(bad.argmax())) / sample_rate
        raise DataError(
            f"audio file {path} has {int(bad.sum())} samples that are not finite (NaN or infinity), the first at "
            f"{first:.3f} s"
        )


def change_speed(wave: np.ndarray, factor: float) -> np.ndarray:
    """Play `wave` `factor` times as fast: tempo and pitch rise together, as on a tape.

    Returns:
        About ``len(wave) / factor`` samples at the same rate.
    """
    return wave if factor == 1.0 else soxr.resample(wave, factor, 1.0)
