"""Choices that every machine makes alike: the numbers themselves, or corpora would change in silence."""

import random

from lightning_novograd.recipes.asr.data.corpora.rng import choice, randint, seed_of, shuffled


def test_the_numbers():
    rng = random.Random(1)
    assert seed_of("a", 1) == 1999778475
    assert [randint(rng, 3, 7) for _ in range(12)] == [3, 7, 6, 4, 5, 5, 6, 6, 3, 3, 7, 5]
    assert "".join(choice(rng, "abc") for _ in range(8)) == "cabcacca"
    items = list(range(8))
    assert shuffled(rng, items) == [2, 6, 4, 7, 1, 5, 3, 0]
    assert items == list(range(8))
