"""Log-mel features of waveforms, equal to NeMo's ``AudioToMelSpectrogramPreprocessor``."""

import dataclasses
import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.common.section import Section, key

_WINDOWS = {
    "hann": torch.hann_window,
    "hamming": torch.hamming_window,
    "blackman": torch.blackman_window,
    "bartlett": torch.bartlett_window,
}
_STD_FLOOR = 1e-5
# 256 MB of mel filters; NeMo's have 64 x 512 values
_MOST_FILTER_VALUES = 1 << 26
# spectra of this many values at a time stay in a CPU core's cache; larger batches are computed in slices
_SLICE_VALUES = 1 << 18


@dataclasses.dataclass(frozen=True, kw_only=True)
class MelConfig(Section):
    """Arguments of :class:`MelSpectrogram`; names and defaults are NeMo's.

    Args:
        sample_rate: of the waveforms, in Hz.
        window_size: length of the analysis window, in seconds; `n_window_size` gives it in samples instead.
        window_stride: distance between frames, in seconds; `n_window_stride` gives it in samples instead.
        window: hann, hamming, blackman or bartlett (symmetric).
        features: number of mel filters.
        n_fft: length of the Fourier transform, in samples; null for the next power of two.
        normalize: ``per_feature`` (each filter over the utterance's frames), ``all_features`` (one mean and deviation
            for the utterance) or null.
        dither: standard deviation of noise added to the waveform in training.
        preemph: y[t] = x[t] - preemph*x[t-1]; null for none.
        pad_to: the number of frames is padded with zeros to a multiple of this; 0 for no padding.
        exact_pad: pad so that there are floor(samples/stride) frames, instead of centring frames on multiples of it.
        lowfreq: lower end of the first filter, in Hz.
        highfreq: upper end of the last filter, in Hz; null for half the sample rate.
        log: take the logarithm.
        log_zero_guard_type: how log(0) is kept away: ``add`` or ``clamp``.
        log_zero_guard_value: what is added or clamped to: a number, or the float type's ``tiny`` or ``eps``.
    """

    sample_rate: int = key(16000, low=1, high=1_000_000)
    window_size: float | None = key(0.02, above=0, high=10.0)
    window_stride: float | None = key(0.01, above=0, high=10.0)
    n_window_size: int | None = key(None, low=1, high=1 << 20)
    n_window_stride: int | None = key(None, low=1, high=1 << 20)
    window: str = key("hann", allowed=list(_WINDOWS))
    features: int = key(64, low=1, high=4096)
    n_fft: int | None = key(None, low=1, high=1 << 20)
    normalize: str | None = key("per_feature", allowed=["per_feature", "all_features", None])
    dither: float = key(1e-5, low=0)
    preemph: float | None = key(0.97)
    pad_to: int = key(16, low=0, high=1 << 20)
    exact_pad: bool = key(False)
    lowfreq: float = key(0.0, low=0)
    highfreq: float | None = key(None, above=0)
    log: bool = key(True)
    log_zero_guard_type: str = key("add", allowed=["add", "clamp"])
    log_zero_guard_value: float | str = key(2.0**-24, above=0)

    fixed: ClassVar[dict[str, Any]] = {
        "frame_splicing": 1,
        "mag_power": 2.0,
        "pad_value": 0,
        "mel_norm": "slaney",
        "rng": None,
        "nb_augmentation_prob": 0.0,
        "nb_max_freq": 4000,
        "use_torchaudio": False,
        "stft_exact_pad": False,
        "stft_conv": False,
    }

    def check(self) -> None:
        """Relate the window, the transform and the frequency range."""
        if self.n_window_size is None and self.window_size is None:
            raise ConfigError("window_size", "is null, and so is n_window_size; give one of them")
        if self.n_window_stride is None and self.window_stride is None:
            raise ConfigError("window_stride", "is null, and so is n_window_stride; give one of them")
        if self.window_samples < 2 or self.stride_samples < 1:
            short = "window_size" if self.window_samples < 2 else "window_stride"
            raise ConfigError(short, f"{getattr(self, short)} s are too few samples at {self.sample_rate} Hz")
        if self.fft_samples < self.window_samples:
            raise ConfigError("n_fft", f"{self.n_fft} is less than the window's {self.window_samples} samples")
        if self.features * self.fft_samples > _MOST_FILTER_VALUES:
            raise ConfigError("features", f"{self.features} filters of {self.fft_samples} samples are too large")
        if self.top_hz > self.sample_rate / 2:
            raise ConfigError(
                "highfreq", f"{self.highfreq} Hz is above half the sample rate ({self.sample_rate / 2} Hz)"
            )
        if self.lowfreq >= self.top_hz:
            raise ConfigError("lowfreq", f"{self.lowfreq} Hz is not below highfreq ({self.top_hz} Hz)")
        if self.exact_pad and self.stride_samples % 2:
            raise ConfigError("exact_pad", f"needs an even window stride, not {self.stride_samples} samples")
        if isinstance(self.log_zero_guard_value, str) and self.log_zero_guard_value not in ("tiny", "eps"):
            raise ConfigError(
                "log_zero_guard_value", f"must be a number, 'tiny' or 'eps', not {self.log_zero_guard_value!r}"
            )

    @property
    def window_samples(self) -> int:
        """Window length in samples."""
        return self.n_window_size or int((self.window_size or 0) * self.sample_rate)

    @property
    def stride_samples(self) -> int:
        """Distance between frames in samples."""
        return self.n_window_stride or int((self.window_stride or 0) * self.sample_rate)

    @property
    def fft_samples(self) -> int:
        """Length of the Fourier transform."""
        return self.n_fft or 2 ** math.ceil(math.log2(self.window_samples))

    @property
    def top_hz(self) -> float:
        """Upper end of the last filter."""
        return self.highfreq or self.sample_rate / 2


class MelSpectrogram(nn.Module):
    """Waveforms to normalized log-mel features.

    With y the pre-emphasized waveform, zero at and beyond its length, and n = floor(samples/stride) valid frames::

        x = log(mel(|STFT(y)|^2) + 2^-24);   x = (x - mean_n(x)) / (std_n(x) + 1e-5);   x[n:] = 0

    The mel filters are Slaney's, with unit area. Nothing here has a gradient. What lies in the padding of the
    waveforms never matters. float64 waveforms give float64 features; all others are computed in float32.

    Args:
        config: see :class:`MelConfig`.

    Buffers:
        featurizer.window: analysis window, float32.
        featurizer.fb: mel matrix ``(1, features, n_fft//2+1)``, float32.

    Example:
        >>> mel = MelSpectrogram(MelConfig(pad_to=0))
        >>> features_BCT, lens_B = mel(torch.randn(2, 16000), torch.tensor([16000, 8000]))
        >>> features_BCT.shape, lens_B
        (torch.Size([2, 64, 101]), tensor([100,  50]))

    Source: NeMo 3.0.0; same values to 1e-4, about three times as fast on a CPU. An utterance of one frame is zeros on
    every device, where NeMo raises with CUDA.
    """

    def __init__(self, config: MelConfig | None = None) -> None:
        super().__init__()
        self.config = config or MelConfig()
        self.featurizer = MelPower(self.config)

    def output_lengths(self, wave_lens_B: Tensor) -> Tensor:
        """Valid frames of waveforms with these numbers of samples."""
        c = self.config
        beyond = 2 * self._margin - c.fft_samples
        whole = torch.div(wave_lens_B + beyond, c.stride_samples, rounding_mode="floor")
        return whole.clamp(min=0).to(torch.int64)

    @property
    def _margin(self) -> int:
        """Zeros that the STFT sees on either side of the waveform."""
        c = self.config
        return (c.fft_samples - c.stride_samples) // 2 if c.exact_pad else c.fft_samples // 2

    @torch.no_grad()
    def forward(self, wave_BS: Tensor, wave_lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``(batch, features, frames)`` and valid frames.

        Args:
            wave_BS: waveforms ``(batch, samples)``, within [-1, 1].
            wave_lens_B: valid samples of each.
        """
        c = self.config
        lens_B = self.output_lengths(wave_lens_B)
        num_frames = 1 + (wave_BS.shape[1] + 2 * self._margin - c.fft_samples) // c.stride_samples
        num_frames = torch.sym_max(1, num_frames)  # max would fix the length where a model is exported
        with torch.autocast(wave_BS.device.type, enabled=False):
            y_BS = self._pre_emphasize(wave_BS, wave_lens_B)
            x_BTC = self.featurizer(y_BS, num_frames, first=0 if c.exact_pad else -self._margin)
            if c.log:
                x_BTC = self._log(x_BTC)
            x_BTC = _normalize(x_BTC, lens_B, c.normalize)
        extra = -num_frames % c.pad_to if c.pad_to else 0
        x_BCT = F.pad(x_BTC.transpose(1, 2), (0, extra))
        return x_BCT.contiguous().to(wave_BS.dtype), lens_B

    def _pre_emphasize(self, wave_BS: Tensor, wave_lens_B: Tensor) -> Tensor:
        c = self.config
        y_BS = wave_BS.to(torch.promote_types(wave_BS.dtype, torch.float32), copy=True)
        if c.exact_pad:
            # as in NeMo the padding comes first, so that the end of the waveform is cut by the margin
            y_BS = F.pad(y_BS, (self._margin, self._margin))
        if self.training and c.dither > 0:
            y_BS.add_(torch.randn_like(y_BS), alpha=c.dither)
        if c.preemph is not None:
            # two roundings, as in NeMo: one fused would show in silence, where the logarithm magnifies it
            y_BS[:, 1:] -= y_BS[:, :-1] * c.preemph
        beyond_BS = torch.arange(y_BS.shape[1], device=y_BS.device) >= wave_lens_B.unsqueeze(1)
        return y_BS.masked_fill_(beyond_BS, 0.0)

    def _log(self, x: Tensor) -> Tensor:
        guard = self.config.log_zero_guard_value
        if isinstance(guard, str):
            guard = getattr(torch.finfo(x.dtype), guard)
        x = x.add_(guard) if self.config.log_zero_guard_type == "add" else x.clamp_(min=guard)
        return x.log_()


class MelPower(nn.Module):
    """Power of a waveform in each mel filter, frame by frame: ``mel @ |FFT(window * frame)|^2``."""

    window: Tensor
    fb: Tensor

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.stride, self.n_fft = config.stride_samples, config.fft_samples
        self.register_buffer("window", _WINDOWS[config.window](config.window_samples, periodic=False))
        mel = mel_filters(config.sample_rate, config.fft_samples, config.features, config.lowfreq, config.top_hz)
        self.register_buffer("fb", mel.unsqueeze(0))

    def forward(self, y_BS: Tensor, num_frames: int, first: int) -> Tensor:
        """Mel power ``(batch, frames, features)``; the transform of frame i begins at sample first + i*stride."""
        needed = (num_frames - 1) * self.stride + self.n_fft
        y_BS = F.pad(y_BS, (-first, needed + first - y_BS.shape[1]))
        spare = self.n_fft - len(self.window)
        window = F.pad(self.window.to(y_BS.dtype), (spare // 2, spare - spare // 2))
        # re^2 and im^2 lie side by side: the matrix product adds them up
        mel_2NC = self.fb[0].to(y_BS.dtype).T.repeat_interleave(2, dim=0)
        if y_BS.device.type != "cpu" or torch.compiler.is_exporting():  # a loop would fix the size of the batch
            return torch.matmul(self._power(y_BS, window), mel_2NC)
        mel_BTC = y_BS.new_empty(len(y_BS), num_frames, mel_2NC.shape[1])
        size = max(1, _SLICE_VALUES // (num_frames * self.n_fft))
        for start in range(0, len(y_BS), size):
            power = self._power(y_BS[start : start + size], window)
            torch.matmul(power, mel_2NC, out=mel_BTC[start : start + size])
        return mel_BTC

    def _power(self, y_BS: Tensor, window: Tensor) -> Tensor:
        frames = y_BS.unfold(1, self.n_fft, self.stride) * window
        return torch.view_as_real(torch.fft.rfft(frames)).square_().flatten(-2)


def _normalize(x_BTC: Tensor, lens_B: Tensor, mode: str | None) -> Tensor:
    """In place: zero mean and unit deviation over the valid frames; zeros beyond them."""
    valid_BT1 = (torch.arange(x_BTC.shape[1], device=x_BTC.device) < lens_B.unsqueeze(1)).unsqueeze(2).to(x_BTC.dtype)
    x_BTC.mul_(valid_BT1)
    if mode is None:
        return x_BTC
    over = (1,) if mode == "per_feature" else (1, 2)
    count_B11 = lens_B.to(x_BTC.dtype).view(-1, 1, 1) * (1 if mode == "per_feature" else x_BTC.shape[2])
    # no frame, or a single one, divides by 1: such features come out as zeros, not as NaN
    x_BTC.sub_(x_BTC.sum(over, keepdim=True) / count_B11.clamp(min=1)).mul_(valid_BT1)
    variance = x_BTC.square().sum(over, keepdim=True) / (count_B11 - 1).clamp(min=1)
    return x_BTC.div_(variance.sqrt_().add_(_STD_FLOOR))


def mel_filters(sample_rate: int, n_fft: int, features: int, lowfreq: float, highfreq: float) -> Tensor:
    """Triangular mel filters of unit area, on Slaney's mel scale.

    The scale is linear up to 1000 Hz (15 mel at 3/200 mel per Hz) and logarithmic above (27 mel per factor of 6.4);
    neighbouring triangles overlap by half.

    Returns:
        float32 ``(features, n_fft//2+1)``, computed in float64.

    Source: Slaney, Auditory Toolbox (1998); the same matrix as librosa's ``filters.mel``.
    """
    corners_mel = torch.linspace(_mel(lowfreq), _mel(highfreq), features + 2, dtype=torch.float64)
    linear_hz = corners_mel * (200 / 3)
    log_hz = 1000 * torch.exp((corners_mel - 15) * (math.log(6.4) / 27))
    corners_hz = torch.where(corners_mel < 15, linear_hz, log_hz).unsqueeze(1)
    left, peak, right = corners_hz[:-2], corners_hz[1:-1], corners_hz[2:]
    bins_hz = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * (sample_rate / n_fft)
    rising, falling = (bins_hz - left) / (peak - left), (right - bins_hz) / (right - peak)
    triangles = torch.minimum(rising, falling).clamp(min=0)
    return (triangles * 2 / (right - left)).to(torch.float32)


def _mel(hz: float) -> float:
    return hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)
