"""Numbers that an argument may have: for registered classes that do not look, and for our own what float32 holds.

Weights and most arithmetic on them are float32: there 1e39 is infinite, 1e-50 is 0 and 0.99999999 is 1.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning_novograd.errors import ConfigError

LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127
# Below it digits are lost, and its reciprocal is still finite
SMALLEST_FLOAT32 = 2.0**-126
BEYOND_FLOAT32 = f"is beyond float32, whose largest number is {LARGEST_FLOAT32:.1e}"


def in_float32(number: float) -> float:
    """The nearest number that float32 holds, infinite beyond its range."""
    try:
        return struct.unpack("f", struct.pack("f", number))[0]
    except OverflowError:
        return math.inf if number > 0 else -math.inf


@dataclass(frozen=True)
class Range:
    """Numbers that an argument may have, where its class does not check them.

    Args:
        words: `"at least 1"`, for error messages.
        holds: whether a finite number is in it.

    """

    words: str
    holds: Callable[[float], bool]

    def check(self, name: str, value: Any) -> None:
        """Raise unless the numbers in `value`, one or a list of them, are finite and in the range, in float32 too.

        Args:
            name: of the argument.
            value: what it was given; null is for others to judge.

        Raises:
            ConfigError: `path` is `name`.

        """
        for number in value if isinstance(value, list | tuple) else [value]:
            if number is None:
                continue
            if isinstance(number, float) and not math.isfinite(number):
                raise ConfigError(name, f"{value} is not a finite number")
            if not self.holds(number):
                raise ConfigError(name, f"{value} is out of range; must be {self.words}")
            if not isinstance(number, int | float):
                continue  # a tensor, where no parser has seen it
            rounded = in_float32(number)
            if math.isinf(rounded):
                raise ConfigError(name, f"{value} {BEYOND_FLOAT32}; must be {self.words}")
            if not self.holds(rounded):
                raise ConfigError(name, f"{value} is {rounded} in float32; must be {self.words} there")

    def of_numbers(self) -> "Range":
        """The same for an argument that may also be something else, as it may in a subclass."""
        return Range(self.words, lambda value: not isinstance(value, int | float) or self.holds(value))


FINITE = Range("finite", lambda value: True)
NOT_NEGATIVE = Range("at least 0", lambda value: value >= 0)
POSITIVE = Range("above 0", lambda value: value > 0)
AT_LEAST_1 = Range("at least 1", lambda value: value >= 1)
SHARE = Range("in 0..1", lambda value: 0 <= value <= 1)
POSITIVE_SHARE = Range("above 0 and at most 1", lambda value: 0 < value <= 1)
BELOW_1 = Range("at least 0 and below 1", lambda value: 0 <= value < 1)
