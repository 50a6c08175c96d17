"""Recordings of any length, read in blocks."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.data.audio import (
    Header,
    check_channels,
    check_finite,
    check_header,
    load_audio,
    read_header,
)
from lightning_novograd.recipes.asr.recognition.segments import LONGEST, Segment, segments

_BLOCK = 10.0  # s
_BLOCK_SAMPLES = 1 << 20  # at most, whatever sample rate a header claims


def read_segments(path: Path, sample_rate: int, downmix: bool = False, longest: float = LONGEST) -> Iterator[Segment]:
    """A recording in pieces that a model can be given: itself where it is short enough, else cut by `segments`.

    Args:
        path: any format libsndfile reads.
        sample_rate: Hz, of the model.
        downmix: average the channels of a file that has several, which is an error otherwise.
        longest: s, of a piece.

    Raises:
        DataError: the file is missing, corrupt, shorter than it claims, or has several channels. A file that ends early
            is noticed at its end, when pieces have been given already.
    """
    if _seconds(path) <= longest:
        yield Segment(load_audio(path, sample_rate, downmix=downmix), 0.0)
    else:
        yield from segments(read_blocks(path, sample_rate, downmix), sample_rate, longest)


def read_blocks(path: Path, sample_rate: int, downmix: bool = False) -> Iterator[np.ndarray]:
    """Samples of a whole file at the model's rate, some seconds at a time; as those of `load_audio` but for rounding.

    Raises:
        DataError: it is corrupt or shorter than its header says, has samples that are not finite, or several channels
            and `downmix` is not set.
    """
    resampler, read = None, 0
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:
            check_header(path, Header(file.frames, file.samplerate, file.channels))
            check_channels(path, file.channels, downmix)
            if file.samplerate != sample_rate:
                resampler = soxr.ResampleStream(file.samplerate, sample_rate, 1, dtype="float32")
            size = min(_BLOCK_SAMPLES, max(1, round(_BLOCK * file.samplerate)))
            while len(block := file.read(size, dtype="float32", always_2d=True)):
                check_finite(path, block, read, file.samplerate)
                read += len(block)
                mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
                yield mono if resampler is None else resampler.resample_chunk(mono)
            if read != file.frames:
                raise DataError(f"audio file {path} is corrupt: {read} of {file.frames} samples can be read")
    except soundfile.LibsndfileError as error:
        raise DataError(f"audio file {path} is corrupt: {error.error_string}") from error
    if resampler is not None:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _seconds(path: Path) -> float:
    """Length of a recording; 0 for what cannot be read, of which `load_audio` says what is wrong."""
    try:
        return read_header(path).seconds
    except DataError:
        return 0.0
