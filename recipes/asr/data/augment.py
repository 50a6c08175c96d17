"""Augmentation of the training set's waveforms: speed, and noise."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.data.audio import change_speed, load_audio, read_header
from lightning_novograd.recipes.asr.data.manifest import parse_row, read_rows
from lightning_novograd.recipes.common.section import Section, key, plain_mapping

SLOWEST, FASTEST = 0.5, 2.0
_TILTS = (0.0, 2.0)  # of synthetic noise: its power falls with frequency to minus this, from white to brown


@dataclass(frozen=True, kw_only=True)
class NoiseConfig(Section):
    """Noise that is added to some of the utterances; names are NeMo's.

    Args:
        prob: share of the utterances that get some, drawn anew in every epoch.
        min_snr_db: lowest ratio of the speech's power to the noise's, in dB.
        max_snr_db: highest one; it is drawn between the two.
        manifest: JSON lines with ``audio_filepath``, recordings of noise; null for synthetic noise between white and
            brown.
    """

    prob: float = key(0.5, low=0, high=1)
    min_snr_db: float = key(10.0, low=-20, high=100)
    max_snr_db: float = key(30.0, low=-20, high=100)
    manifest: str | None = key(None)

    def check(self) -> None:
        """The range is one."""
        if self.min_snr_db > self.max_snr_db:
            raise ConfigError("min_snr_db", f"{self.min_snr_db:g} exceeds max_snr_db {self.max_snr_db:g}")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Section):
    """Augmentation of the training set's waveforms.

    Args:
        speed: factors to play at (tempo and pitch together), of which one is drawn for each utterance and epoch: a
            list of them, or ``{min: 0.85, max: 1.15}`` for any in between; null for the recordings as they are.
        noise: see :class:`NoiseConfig`; null for none.
    """

    speed: Sequence | Mapping | None = key(None)
    noise: NoiseConfig | None = key(None)

    @classmethod
    def read(cls, cfg: Any, path: str) -> Self:
        """Build it from a mapping; errors name the noise's keys in full."""
        mapping = plain_mapping(cfg, path)
        if mapping.get("noise") is not None:
            mapping["noise"] = NoiseConfig.read(mapping["noise"], f"{path}.noise")
        return super().read(mapping, path)

    def check(self) -> None:
        """Factors are numbers, and not absurd."""
        speed = self.speed
        if isinstance(speed, Mapping) and set(speed) != {"min", "max"}:
            raise ConfigError("speed", f"must have the keys min and max, not {', '.join(map(str, speed)) or 'none'}")
        factors = speed.values() if isinstance(speed, Mapping) else (1.0,) if speed is None else speed
        for factor in factors or (None,):
            if isinstance(factor, bool) or not isinstance(factor, int | float) or not SLOWEST <= factor <= FASTEST:
                raise ConfigError(
                    "speed",
                    f"must be a list of factors from {SLOWEST:g} to {FASTEST:g}, or {{min: ..., max: ...}}, "
                    f"not {speed!r}",
                )
        if isinstance(speed, Mapping) and speed["min"] > speed["max"]:
            raise ConfigError("speed", f"min {speed['min']:g} exceeds max {speed['max']:g}")


class Augment:
    """Changes the waveform of an utterance as (seed, epoch, utterance) say, whichever process asks.

    First the speed f ~ U(factors), then, with probability p, noise n at a level drawn in dB::

        x(t) <- x(f t);    x <- x + n sqrt(mean(x^2) / mean(n^2) / 10^(snr/10)),   snr ~ U[min_snr_db, max_snr_db]

    Args:
        config: see :class:`AugmentConfig`; the default changes nothing.
        seed: of the run.
        sample_rate: Hz, of the waveforms.

    Raises:
        DataError: recordings of noise cannot be read.
    """

    def __init__(self, config: AugmentConfig | None = None, *, seed: int = 0, sample_rate: int = 16000) -> None:
        config = config or AugmentConfig()
        self.speed_config, self.noise, self.seed = config.speed, config.noise, seed
        self.recordings: NoiseRecordings | None = None
        if self.noise is not None and self.noise.manifest is not None:
            self.recordings = NoiseRecordings(Path(os.path.expanduser(self.noise.manifest)), sample_rate)

    @property
    def fastest(self) -> float:
        """The highest speed that is drawn: audio is never shorter than at this one."""
        speed = self.speed_config
        return max(speed.values() if isinstance(speed, Mapping) else speed or (1.0,))

    def speed(self, epoch: int, index: int) -> float:
        """The speed of an utterance in an epoch."""
        speed = self.speed_config
        if speed is None:
            return 1.0
        rng = np.random.default_rng((self.seed, epoch, index))
        if isinstance(speed, Mapping):
            return float(rng.uniform(speed["min"], speed["max"]))
        return float(speed[int(rng.integers(len(speed)))])

    def __call__(self, wave: np.ndarray, epoch: int, index: int) -> np.ndarray:
        """The waveform as it is heard in an epoch; float32, shape (samples,)."""
        wave = change_speed(wave, self.speed(epoch, index))
        return wave if self.noise is None else self._add_noise(wave, epoch, index)

    def _add_noise(self, wave: np.ndarray, epoch: int, index: int) -> np.ndarray:
        assert self.noise is not None
        rng = np.random.default_rng((self.seed, epoch, index, 1))
        drawn, snr_db = rng.uniform(), rng.uniform(self.noise.min_snr_db, self.noise.max_snr_db)
        if drawn >= self.noise.prob:
            return wave
        noise = synthetic_noise(rng, len(wave)) if self.recordings is None else self.recordings.draw(rng, len(wave))
        speech_power, noise_power = np.mean(np.square(wave)), np.mean(np.square(noise))
        if noise_power == 0:
            return wave
        scale = np.sqrt(speech_power / noise_power / 10 ** (snr_db / 10))
        return wave + np.float32(scale) * noise


def synthetic_noise(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Gaussian noise whose power falls with frequency to minus a power drawn from 0 (white) to 2 (brown).

    Returns:
        float32, shape (samples,), of no particular level.
    """
    tilt = rng.uniform(*_TILTS)
    spectrum = np.fft.rfft(rng.standard_normal(samples, dtype=np.float32))
    spectrum *= np.maximum(np.arange(len(spectrum)), 1) ** (-tilt / 2)
    return np.fft.irfft(spectrum, samples).astype(np.float32)


class NoiseRecordings:
    """Recordings of noise, named by a manifest, of which random parts are drawn.

    Args:
        manifest: JSON lines with ``audio_filepath``, absolute or relative to the manifest's folder.
        sample_rate: Hz, that parts are resampled to.

    Raises:
        DataError: the manifest or a recording in it cannot be used.
    """

    def __init__(self, manifest: Path, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        paths = []
        for line, row in read_rows(manifest, "manifest of noise"):
            try:
                name = parse_row(row).get("audio_filepath")
                if not isinstance(name, str) or not name:
                    raise DataError(f"'audio_filepath' must be a path, not {name!r}")
            except DataError as error:
                raise DataError(f"manifest of noise {manifest} cannot be read: {error} in line {line}") from None
            paths.append(manifest.parent / os.path.expanduser(name))
        if not paths:
            raise DataError(f"manifest of noise {manifest} is empty")
        self.recordings = [(path, read_header(path).seconds) for path in paths]

    def draw(self, rng: np.random.Generator, samples: int) -> np.ndarray:
        """`samples` of a random recording from a random place on; a shorter one is repeated."""
        path, seconds = self.recordings[rng.integers(len(self.recordings))]
        wanted = samples / self.sample_rate
        offset = rng.uniform(0, max(0.0, seconds - wanted))
        wave = load_audio(path, self.sample_rate, offset=offset, duration=wanted, downmix=True)
        return np.resize(wave, samples)
