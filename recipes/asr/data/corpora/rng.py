"""Choices that are the same on every machine and in every version of Python."""

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def seed_of(*names: object) -> int:
    """A 32-bit seed from any names."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, names)).encode()).digest()[:4], "big")


def randint(rng: random.Random, low: int, high: int) -> int:
    """Uniform in low..high, both included, from `random` alone: its stream is the one Python promises to keep."""
    return low + int(rng.random() * (high - low + 1))


def choice(rng: random.Random, items: Sequence[T]) -> T:
    """One of the items."""
    return items[randint(rng, 0, len(items) - 1)]


def shuffled(rng: random.Random, items: Sequence[T]) -> list[T]:
    """The items in random order."""
    result = list(items)
    for i in reversed(range(1, len(result))):
        j = randint(rng, 0, i)
        result[i], result[j] = result[j], result[i]
    return result
