"""Speak texts with eSpeak NG and write them as FLAC; run as a script, never imported by the recipe.

eSpeak NG is GPL-3.0 and is loaded by this process only. Jobs come as JSON lines on stdin (see `make_jobs` in
digits.py); for each one line with its number of samples goes to stdout.

The library keeps state between utterances (the phase of its oscillators, two random generators). It is unloaded and
loaded again for each, so that an utterance does not depend on what this process has spoken before.
"""

import _ctypes
import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import espeakng_loader
import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16000
HEADROOM = 0.7  # resampling overshoots; some voices come close to full scale
# constants of speak_lib.h
SYNCHRONOUS = 2
SSML_IN_UTF8 = 0x11
PARAMETERS = {"rate": 1, "pitch": 3, "pitch_range": 4, "word_gap": 7}

SYNTH_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def speak(job: dict[str, Any]) -> tuple[np.ndarray, int]:
    """int16 samples and their rate."""
    data = espeakng_loader.get_data_path()
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    chunks: list[bytes] = []

    @SYNTH_CALLBACK
    def collect(samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    try:
        rate = library.espeak_Initialize(SYNCHRONOUS, 0, str(data).encode(), 0)
        if rate <= 0:
            raise RuntimeError("espeak_Initialize failed")
        ctypes.CDLL(None).srand(ctypes.c_uint(job["seed"]))
        library.espeak_ng_SetRandSeed(ctypes.c_long(job["seed"]))
        library.espeak_SetSynthCallback(collect)
        # an unknown variant would be passed over in silence
        variant = Path(data, "voices", "!v", job["voice"].partition("+")[2])
        if library.espeak_SetVoiceByName(job["voice"].encode()) or not variant.is_file():
            raise RuntimeError(f"there is no voice {job['voice']}")
        for name, number in PARAMETERS.items():
            library.espeak_SetParameter(number, job[name], 0)
        text = job["ssml"].encode()
        if library.espeak_Synth(text, len(text) + 1, 0, 1, 0, SSML_IN_UTF8, None, None):
            raise RuntimeError(f"cannot speak {job['ssml']!r} as {job['voice']}")
        library.espeak_Synchronize()
        library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)
    return np.frombuffer(b"".join(chunks), dtype=np.int16), rate


def render(job: dict[str, Any]) -> np.ndarray:
    """int16 samples at 16 kHz, with silence before and after, and noise over all of it."""
    samples, rate = speak(job)
    wave = soxr.resample(samples.astype(np.float64) * HEADROOM, rate, SAMPLE_RATE)
    before, after = (ms * SAMPLE_RATE // 1000 for ms in job["silence_ms"])
    level = np.sqrt(np.mean(wave**2)) * 10.0 ** (job["noise_db"] / 20)
    wave = np.pad(wave, (before, after))
    wave += np.random.RandomState(job["seed"]).standard_normal(len(wave)) * level
    return np.clip(np.rint(wave), -32768, 32767).astype(np.int16)


def main() -> None:
    """Do all jobs."""
    for line in sys.stdin:
        job = json.loads(line)
        wave = render(job)
        soundfile.write(str(Path(job["path"])), wave, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        print(len(wave))


if __name__ == "__main__":
    main()
