"""Greedy decoding against a frame-by-frame reference."""

import itertools

import pytest
import torch

from lightning_novograd.recipes.asr.text.alphabet import Alphabet
from lightning_novograd.recipes.asr.text.decode import greedy

ALPHABET = Alphabet("ab ")
BLANK = ALPHABET.blank


def scores(*rows: list[int]) -> torch.Tensor:
    """Log-probabilities whose best classes are `rows`."""
    return torch.nn.functional.one_hot(torch.tensor(rows), BLANK + 1).float().log_softmax(-1)


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        pytest.param([0, 0, 1, 1], "ab", id="runs are one character"),
        pytest.param([0, BLANK, 0, 1], "aab", id="a blank separates equal characters"),
        pytest.param([BLANK, BLANK, BLANK, BLANK], "", id="nothing but blanks"),
        pytest.param([2, 0, 2, 2], " a ", id="spaces stay"),
        pytest.param([0, 1, 0, 1], "abab", id="no blanks at all"),
    ],
)
def test_collapse(frames, text):
    assert greedy(scores(frames), torch.tensor([4]), ALPHABET) == [text]


def test_padding_does_not_count():
    log_probs = scores([0, 1, 1, 0], [1, BLANK, 1, 0], [0, 0, 0, 0])
    assert greedy(log_probs, torch.tensor([2, 3, 0]), ALPHABET) == ["ab", "bb", ""]


def test_equal_to_a_loop_over_frames():
    generator = torch.Generator().manual_seed(0)
    best_BT = torch.randint(BLANK + 1, (40, 60), generator=generator)
    lens = torch.randint(61, (40,), generator=generator)
    expected = [
        ALPHABET.decode(c for c, _ in itertools.groupby(row[:n].tolist()) if c != BLANK)
        for row, n in zip(best_BT, lens, strict=True)
    ]
    assert greedy(scores(*best_BT.tolist()), lens, ALPHABET) == expected


def test_another_number_of_classes():
    with pytest.raises(ValueError, match="the model has 3 classes, the alphabet 3 characters and a blank"):
        greedy(torch.zeros(1, 2, 3), torch.tensor([2]), ALPHABET)
