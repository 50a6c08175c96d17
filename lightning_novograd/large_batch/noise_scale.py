"""How noisy gradients are, and so up to which batch more samples pay."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class GradientNoise:
    """The two quantities that say how noisy a gradient is.

    Args:
        sq_gradient: estimate of |G|^2, the squared norm of the true gradient; a single estimate may be negative.
        trace: estimate of tr(Sigma), the variance of the gradient of one sample, summed over all parameters.

    """

    sq_gradient: float
    trace: float

    @property
    def scale(self) -> float:
        """B_simple = tr(Sigma) / |G|^2 in samples; NaN where the estimate of |G|^2 is not positive."""
        return self.trace / self.sq_gradient if self.sq_gradient > 0 else math.nan


def gradient_noise(
    small_sq_norm: float, large_sq_norm: float, small_batch_size: float, large_batch_size: float
) -> GradientNoise:
    r"""Unbiased estimates of :math:`|G|^2` and :math:`\operatorname{tr}\Sigma` from gradients at two batch sizes.

    .. math::
        |G|^2 = \frac{B |G_B|^2 - b |G_b|^2}{B - b}, \quad
        \operatorname{tr}\Sigma = \frac{|G_b|^2 - |G_B|^2}{1/b - 1/B}

    since :math:`E|G_b|^2 = |G|^2 + \operatorname{tr}\Sigma / b`. The large batch may be made of the small ones, as
    under accumulation and DDP. Average many estimates (`RunningNoise`) before looking at their ratio: it is biased.

    Args:
        small_sq_norm: |G_b|^2, the squared norm of the gradient of the mean loss over b samples; the mean of several.
        large_sq_norm: |G_B|^2, the same over B samples.
        small_batch_size: b in samples, > 0; of micro-batches of different sizes their harmonic mean.
        large_batch_size: B in samples, > b; for the gradients' mean over N micro-batches N times b.

    Raises:
        ValueError: the batch sizes are not positive and rising.

    Example:
        >>> noise = gradient_noise(small_sq_norm=3.0, large_sq_norm=1.5, small_batch_size=4, large_batch_size=16)
        >>> noise.sq_gradient, noise.trace, noise.scale
        (1.0, 8.0, 8.0)

    McCandlish et al., An Empirical Model of Large-Batch Training, appendix A.1, https://arxiv.org/abs/1812.06162

    """
    b, B = small_batch_size, large_batch_size
    if not 0 < b < B:
        raise ValueError(f"Invalid batch sizes: {b!r} and {B!r}; allowed: 0 < small_batch_size < large_batch_size")
    return GradientNoise(
        sq_gradient=(B * large_sq_norm - b * small_sq_norm) / (B - b),
        trace=(small_sq_norm - large_sq_norm) / (1 / b - 1 / B),
    )


@dataclass(frozen=True)
class RunningNoise:
    """Exponential running means of |G|^2 and tr(Sigma), apart, as their ratio's mean would be biased.

    Args:
        sq_gradient: the running sum of |G|^2.
        trace: the running sum of tr(Sigma).
        weight: of all estimates so far, 0..1; what the sums are divided by.

    Example:
        >>> running = RunningNoise()
        >>> for noise in GradientNoise(1.0, 30.0), GradientNoise(3.0, 10.0):
        ...     running = running.and_then(noise, smoothing=0.5)
        >>> running.mean.scale == (0.25 * 30 + 0.5 * 10) / (0.25 * 1 + 0.5 * 3)
        True

    """

    sq_gradient: float = 0.0
    trace: float = 0.0
    weight: float = 0.0

    @property
    def mean(self) -> GradientNoise:
        """The means; NaN before there is an estimate."""
        if not self.weight:
            return GradientNoise(math.nan, math.nan)
        return GradientNoise(self.sq_gradient / self.weight, self.trace / self.weight)

    def and_then(self, noise: GradientNoise, smoothing: float) -> "RunningNoise":
        """With one more estimate; each one before counts `smoothing` (0 <= smoothing < 1) times what it did."""
        return RunningNoise(
            sq_gradient=smoothing * self.sq_gradient + (1 - smoothing) * noise.sq_gradient,
            trace=smoothing * self.trace + (1 - smoothing) * noise.trace,
            weight=smoothing * self.weight + (1 - smoothing),
        )
