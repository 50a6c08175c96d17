"""How far float32 rounding can move log-mel features, on any CPU and with any Fourier transform."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_novograd.recipes.asr.model.features import MelSpectrogram

EPS = torch.finfo(torch.float32).eps


def feature_rounding(mel: MelSpectrogram, wave_BS: Tensor, lens_B: Tensor) -> Tensor:
    """Bound on the float32 rounding of every feature, in float64 and shaped as the features; 0 beyond the lengths.

    Two correct results differ by twice this at most. With eps = 2^-23 (twice the error of one rounding), f a frame
    within the window w, X the transform of w*f and n its length, every stage passes on the error of the one before::

        spectrum    e  = eps*(log2(n)*|w*f| + max_k|X_k| + |f|)
        mel power   d  = sum_k fb_k*(2*|X_k|*e + e^2) + eps*(bins + 2)*p
        logarithm   dx = max(log((p + d + g)/(p + g)), log((p + g)/(max(p - d, 0) + g))) + eps*(1 + |x|)
        mean        dm = mean(dx) + eps*sqrt(count)*mean|x|
        deviation   ds = rms(dx) + eps*sqrt(count)*s
        feature     dz = (dx + dm + |z|*ds)/(s - ds + 1e-5) + 2*eps*|z|

    - Spectrum: each of the log2(n) stages adds the rounding of a size of |w*f| to every bin, to those without energy
      as well, and there the logarithm magnifies it. The last stages of a tone hold values up to max|X|, whose rounding
      goes to a few other bins. |f| is for the last bit of the window's cosine.
    - Mel power: a sum of the filter's `bins` terms, none negative, in any order.
    - Deviation: changes by no more than the root mean square of what changes its terms.

    Roundings count as independent of each other where many add up: log2(n) and sqrt(count) stand for many times the
    standard deviation of such a sum, where the worst case is a multiple of n and count. Pre-emphasis adds nothing: it
    rounds a product and a difference, which are the same on every CPU.

    Source: Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., sections 4.2 and 24.1.
    """
    c, n_fft = mel.config, mel.config.fft_samples
    assert c.log, "only logarithms have a bound"
    assert c.log_zero_guard_type == "add", "only log(p + g) has a bound"
    guard = float(c.log_zero_guard_value)
    filters_CK = mel.featurizer.fb[0].double()
    window = mel.featurizer.window.double()
    spare = n_fft - len(window)
    margin = 0 if c.exact_pad else n_fft // 2
    y_BS = F.pad(mel._pre_emphasize(wave_BS, lens_B).double(), (margin, margin))
    frames_BTN = y_BS.unfold(1, n_fft, c.stride_samples)[..., spare // 2 : spare // 2 + len(window)]
    windowed_BTN = frames_BTN * window

    bins_BTK = torch.fft.rfft(windowed_BTN, n_fft).abs()
    noise_BT = math.log2(n_fft) * windowed_BTN.norm(dim=2) + bins_BTK.amax(2) + frames_BTN.norm(dim=2)
    noise_BT1 = EPS * noise_BT.unsqueeze(2)
    power_BTC = bins_BTK.square() @ filters_CK.T
    d_BTC = (2 * bins_BTK * noise_BT1 + noise_BT1.square()) @ filters_CK.T
    d_BTC += EPS * (filters_CK.count_nonzero(1) + 2) * power_BTC

    x_BTC = (power_BTC + guard).log()
    up_BTC = (power_BTC + d_BTC + guard).log() - x_BTC
    down_BTC = x_BTC - ((power_BTC - d_BTC).clamp(min=0) + guard).log()
    dx_BTC = torch.maximum(up_BTC, down_BTC) + EPS * (1 + x_BTC.abs())

    frames_B = mel.output_lengths(lens_B).tolist()
    bound_BTC = torch.zeros_like(x_BTC)
    for bound_TC, x_TC, dx_TC, count in zip(bound_BTC, x_BTC, dx_BTC, frames_B, strict=True):
        bound_TC[:count] = _normalized(x_TC[:count], dx_TC[:count], c.normalize)
    extra = -bound_BTC.shape[1] % c.pad_to if c.pad_to else 0
    return F.pad(bound_BTC.transpose(1, 2), (0, extra))


def _normalized(x_TC: Tensor, dx_TC: Tensor, mode: str | None) -> Tensor:
    if mode is None:
        return dx_TC
    over = (0,) if mode == "per_feature" else (0, 1)
    count = len(x_TC) * (1 if mode == "per_feature" else x_TC.shape[1])
    if count < 2:  # a frame less itself is 0, without rounding
        return torch.zeros_like(x_TC)
    sum_error = EPS * math.sqrt(count)
    mean, deviation = x_TC.mean(over, keepdim=True), x_TC.std(over, keepdim=True)
    z_TC = (x_TC - mean) / (deviation + 1e-5)
    mean_error = dx_TC.mean(over, keepdim=True) + sum_error * x_TC.abs().mean(over, keepdim=True)
    deviation_error = (dx_TC.square().sum(over, keepdim=True) / (count - 1)).sqrt() + sum_error * deviation
    least = (deviation - deviation_error).clamp(min=0) + 1e-5
    return (dx_TC + mean_error + z_TC.abs() * deviation_error) / least + 2 * EPS * z_TC.abs()
