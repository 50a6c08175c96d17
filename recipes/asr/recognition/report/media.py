"""Sound and pictures inside a page."""

import base64
import io
import warnings
from collections.abc import Sequence

import numpy as np
import soundfile
from matplotlib.figure import Figure

from lightning_novograd.recipes.asr.recognition.words import Word

LONGEST = 30.0  # s of sound in a page for one utterance
_WINDOW, _HOP = 0.025, 0.01  # s
_RANGE = 70.0  # dB that a spectrogram shows
_INK = "#808080"  # to be read on white and on black


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as an address that needs no file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def player(wave: np.ndarray, sample_rate: int) -> str:
    """An audio file with the first LONGEST seconds of `wave`, 16 bits, FLAC, as an address."""
    buffer = io.BytesIO()
    samples = np.clip(wave[: round(LONGEST * sample_rate)], -1, 1)
    soundfile.write(buffer, samples, sample_rate, format="FLAC", subtype="PCM_16")
    return data_uri(buffer.getvalue(), "audio/flac")


def spectrogram(wave: np.ndarray, sample_rate: int, words: Sequence[Word] = ()) -> str:
    """A picture of the power over time and frequency, with the words at their times above it, as an address.

    Args:
        wave: float32 samples; the first LONGEST seconds are shown.
        sample_rate: Hz.
        words: timed from the beginning of `wave`.
    """
    wave = wave[: round(LONGEST * sample_rate)]
    seconds = len(wave) / sample_rate
    figure = Figure(figsize=(8, 2.3), dpi=90, facecolor="none", layout="constrained")
    axes = figure.add_subplot(facecolor="none")
    axes.imshow(
        _decibels(wave, sample_rate),
        origin="lower",
        aspect="auto",
        cmap="magma",
        extent=(0, seconds, 0, sample_rate / 2000),
        interpolation="nearest",
    )
    axes.set_xlabel("s", color=_INK)
    axes.set_ylabel("kHz", color=_INK)
    axes.tick_params(colors=_INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for index, word in enumerate(words):
        if word.start < seconds:
            height = 1.02 + 0.11 * (index % 2)  # neighbours on two lines
            middle = (word.start + word.end) / 2
            text = axes.text(
                middle, height, word.text[:20], color=_INK, ha="center", transform=axes.get_xaxis_transform()
            )
            text.set_parse_math(False)  # a dollar sign is one
            axes.axvspan(word.start, word.end, ymin=0.98, color=_INK, lw=0)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # letters that the font lacks are boxes
        figure.savefig(buffer, format="png")
    return data_uri(buffer.getvalue(), "image/png")


def _decibels(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    """Power of each frequency and frame, at most _RANGE below the loudest."""
    window = max(2, round(_WINDOW * sample_rate))
    hop = max(1, round(_HOP * sample_rate), len(wave) // 1500)  # no more columns than a screen has
    padded = np.pad(wave, (0, max(0, window - len(wave))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop] * np.hanning(window)
    power = np.square(np.abs(np.fft.rfft(frames, axis=1))).T
    loudest = max(float(power.max()), 1e-10)
    return 10 * np.log10(np.maximum(power / loudest, 10 ** (-_RANGE / 10)))
