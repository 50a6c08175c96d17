"""SpecAugment masks what it says, only in training, and repeatably."""

import pytest
import torch

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.model.spec_augment import SpecAugment, SpecAugmentConfig

LENS = torch.tensor([100, 60, 3, 0])
FEATURES = torch.ones(4, 64, 100)


def cut(seed=0, x=FEATURES, lens=LENS, **keys):
    """True where the features of training were set to zero."""
    torch.manual_seed(seed)
    return SpecAugment(SpecAugmentConfig(**keys)).train()(x, lens) == 0


def runs(row):
    """Lengths of the stretches of True in `row`."""
    return [len(run) for run in "".join("x" if v else " " for v in row.tolist()).split()]


def test_it_is_off_by_default_and_outside_of_training():
    assert SpecAugment()(FEATURES, LENS) is FEATURES
    assert SpecAugment(SpecAugmentConfig(freq_masks=2, time_masks=2)).eval()(FEATURES, LENS) is FEATURES


def test_it_repeats_with_the_seed_and_leaves_its_input_alone():
    keys = {"freq_masks": 2, "time_masks": 2, "rect_masks": 2}
    assert torch.equal(cut(1, **keys), cut(1, **keys))
    assert not torch.equal(cut(1, **keys), cut(2, **keys))
    assert torch.all(FEATURES == 1)


@pytest.mark.parametrize("seed", range(20))
def test_bands_cross_all_frames(seed):
    mask = cut(seed, freq_masks=1, freq_width=15)
    assert torch.equal(mask, mask[:, :, :1].expand_as(mask))
    assert all(sum(runs(rows)) <= 15 and len(runs(rows)) <= 1 for rows in mask[:, :, 0])


@pytest.mark.parametrize("seed", range(20))
def test_stretches_cross_all_features_within_the_length(seed):
    mask = cut(seed, time_masks=1, time_width=20)
    assert torch.equal(mask, mask[:, :1].expand_as(mask))
    for row, length in zip(mask[:, 0], LENS.tolist(), strict=True):
        assert sum(runs(row)) <= min(20, length)
        assert len(runs(row)) <= 1
        assert not row[length:].any()


def test_a_fractional_time_width_follows_each_length():
    widths = torch.stack([cut(seed, time_masks=1, time_width=0.1)[:, 0].sum(1) for seed in range(200)])
    assert widths.amax(0).tolist() == [10, 6, 1, 0]


@pytest.mark.parametrize("seed", range(20))
def test_rectangles_are_bounded_both_ways(seed):
    mask = cut(seed, rect_masks=1, rect_freq=10, rect_time=8)[:2]
    for one in mask:
        rows, columns = one.any(1), one.any(0)
        assert torch.equal(one, rows[:, None] & columns)
        assert sum(runs(rows)) <= 10
        assert sum(runs(columns)) <= 8


def test_widths_and_places_are_uniform():
    x, lens = torch.ones(20000, 8, 1), torch.ones(20000, dtype=torch.int64)
    mask = cut(x=x, lens=lens, freq_masks=1, freq_width=4)[:, :, 0]
    shares = torch.bincount(mask.sum(1), minlength=5) / len(x)
    torch.testing.assert_close(shares, torch.full((5,), 0.2), rtol=0, atol=0.02)
    # feature i is covered by start s in 0..4 and width w in 0..4 when s <= i < s + w
    expected = torch.tensor([sum(s <= i < s + w for s in range(5) for w in range(5)) / 25 for i in range(8)])
    torch.testing.assert_close(mask.float().mean(0), expected, rtol=0, atol=0.02)


def test_masks_differ_between_utterances():
    mask = cut(freq_masks=1, freq_width=30, x=torch.ones(8, 64, 4), lens=torch.full((8,), 4))
    assert len({tuple(rows.tolist()) for rows in mask[:, :, 0]}) > 4


def test_masks_wider_than_the_features_fit_in():
    x, lens = torch.ones(4, 5, 6), torch.full((4,), 6)
    assert cut(x=x, lens=lens, freq_masks=3, freq_width=50, rect_masks=3, rect_time=50).shape == (4, 5, 6)


@pytest.mark.parametrize(
    ("keys", "high", "long"),
    [
        ({"freq_masks": 1}, 10, 100),
        ({"time_masks": 1}, 64, 10),
        ({"rect_masks": 1}, 20, 5),
        ({"time_masks": 1, "time_width": 1.0}, 64, 100),
    ],
)
def test_the_largest_of_each_kind(keys, high, long):
    """Widths are reached, and not exceeded, where none is given."""
    x, lens = torch.ones(4000, 64, 100), torch.full((4000,), 100)
    mask = cut(x=x[:, :, :1].expand(-1, -1, 100), lens=lens, **keys)
    assert mask.any(2).sum(1).max() == high
    assert mask.any(1).sum(1).max() == long


def test_several_kinds_and_several_of_a_kind():
    for kind in ("freq", "time", "rect"):
        one, two = (cut(0, **{f"{kind}_masks": n}).float().mean() for n in (1, 6))
        assert two > 1.5 * one
    both = cut(freq_masks=1, freq_width=30, time_masks=1, time_width=50)[0]
    assert both.all(1).any()
    assert both.all(0).any()


def test_it_has_no_gradient():
    x = FEATURES.clone().requires_grad_()
    assert not SpecAugment(SpecAugmentConfig(freq_masks=1)).train()(x, LENS).requires_grad


@pytest.mark.parametrize(
    ("keys", "path", "problem"),
    [
        ({"freq_mask": 2}, "s.freq_mask", "did you mean 'freq_masks'?"),
        ({"time_width": 1.5}, "s.time_width", "neither a whole number of frames nor a fraction"),
        ({"time_masks": -1}, "s.time_masks", "must be at least 0"),
        ({"freq_width": 0.5}, "s.freq_width", "must be a whole number"),
    ],
)
def test_a_bad_argument_is_named(keys, path, problem):
    with pytest.raises(ConfigError) as error:
        SpecAugmentConfig.read(keys, "s")
    assert error.value.path == path
    assert problem in error.value.problem
