"""The gradient noise scale where it is known: unbiased, in float64."""

import math

import pytest
import torch

from lightning_novograd.large_batch import GradientNoise, RunningNoise, gradient_noise


def test_it_inverts_what_is_expected_of_the_norms():
    true = GradientNoise(sq_gradient=0.3, trace=70.0)
    norms = {size: true.sq_gradient + true.trace / size for size in (4, 4.5, 48)}
    for small in (4, 4.5):
        noise = gradient_noise(norms[small], norms[48], small, 48)
        assert noise.sq_gradient == pytest.approx(true.sq_gradient, rel=1e-12)
        assert noise.trace == pytest.approx(true.trace, rel=1e-12)


def parts_of_steps(weights, steps, parts, size, generator):
    """Gradients of `parts` micro-batches for each of `steps` steps, of linear regression on white inputs."""
    dim = len(weights)
    x = torch.randn(steps, parts, size, dim, dtype=torch.float64, generator=generator)
    noise = torch.randn(steps, parts, size, dtype=torch.float64, generator=generator)
    # the loss of a sample is (w.x - y)^2 / 2 with y = 0.5 * noise
    return ((x @ weights - 0.5 * noise).unsqueeze(-1) * x).mean(2)


@pytest.mark.parametrize(("parts", "size"), [(2, 1), (4, 3)])
def test_linear_regression_has_its_known_noise_scale(parts, size):
    """With x ~ N(0, 1) and residuals of variance s^2: G = w, Sigma = (|w|^2 + s^2) I + w w^T."""
    generator = torch.Generator().manual_seed(0)
    weights, steps = torch.linspace(-1, 1, 8, dtype=torch.float64), 40_000
    grads = parts_of_steps(weights, steps, parts, size, generator)
    small, large = grads.square().sum(-1).mean(1), grads.mean(1).square().sum(-1)
    noises = [gradient_noise(s, b, size, parts * size) for s, b in zip(small.tolist(), large.tolist(), strict=True)]
    sq_gradient = float(weights @ weights)
    trace = 8 * (sq_gradient + 0.25) + sq_gradient
    for name, expected in (("sq_gradient", sq_gradient), ("trace", trace)):
        values = torch.tensor([getattr(noise, name) for noise in noises], dtype=torch.float64)
        assert abs(float(values.mean()) - expected) < 4 * float(values.std()) / math.sqrt(steps), name
        assert 4 * float(values.std()) / math.sqrt(steps) < 0.1 * expected, name


def test_parts_of_different_sizes_count_by_their_harmonic_mean():
    """E|g_i|^2 = |G|^2 + tr/b_i, and of their plain mean |G|^2 + tr/N^2 * sum 1/b_i."""
    sizes, true = (2, 3, 6), GradientNoise(0.4, 11.0)
    inverse = sum(1 / size for size in sizes)
    small = sum(true.sq_gradient + true.trace / size for size in sizes) / 3
    large = true.sq_gradient + true.trace * inverse / 9
    noise = gradient_noise(small, large, 3 / inverse, 9 / inverse)
    assert (noise.sq_gradient, noise.trace) == pytest.approx((0.4, 11.0))


@pytest.mark.parametrize("sizes", [(4, 4), (8, 4), (0, 4), (-1, 4)])
def test_one_batch_size_is_not_enough(sizes):
    with pytest.raises(ValueError, match="allowed: 0 < small_batch_size < large_batch_size"):
        gradient_noise(1.0, 1.0, *sizes)


def test_a_gradient_that_is_lost_in_the_noise_has_no_scale():
    assert math.isnan(GradientNoise(-0.1, 3.0).scale)
    assert math.isnan(GradientNoise(0.0, 3.0).scale)
    assert math.isnan(RunningNoise().mean.scale)


def test_numerator_and_denominator_are_averaged_apart():
    running = RunningNoise()
    for noise in (GradientNoise(-1.0, 10.0), GradientNoise(3.0, 30.0)):
        running = running.and_then(noise, smoothing=0.9)
    assert running.mean.sq_gradient == pytest.approx((0.9 * -1 + 3) / 1.9)
    assert running.mean.scale == pytest.approx((0.9 * 10 + 30) / (0.9 * -1 + 3))
    # a constant is its own mean from the first estimate on
    assert RunningNoise().and_then(GradientNoise(2.0, 5.0), 0.99).mean.scale == pytest.approx(2.5)
