"""How often the examples of several manifests are heard in an epoch."""

from collections.abc import Sequence

import numpy as np

from lightning_novograd.errors import DataError


class Mixture:
    """Examples of several parts, each part with a weight: how often one of its examples is heard per epoch.

    Weight 2 is twice in every epoch, 0.25 a quarter of the part in each epoch, drawn without replacement, 1.5 once and
    half of the part once more. An epoch is equally long every time, and depends on nothing but seed and epoch.

    The second hearing of example `i` of `n` is the entry ``n + i``, the third ``2 n + i``, so that each can be
    augmented in its own way.

    Args:
        sizes: examples of each part; they are numbered through.
        weights: of each part, above 0.

    Raises:
        DataError: a weight is so small that no example of its part would be heard.

    Example:
        >>> mixture = Mixture([2, 4], [2.0, 0.5])
        >>> mixture.size, sorted(mixture.entries(seed=1, epoch=0).tolist())
        (6, [0, 1, 4, 5, 6, 7])
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float]) -> None:
        self.total = sum(sizes)
        self.weights = np.repeat(np.asarray(weights, dtype=np.float64), sizes)
        self._parts: list[tuple[int, int, int, int]] = []  # first example, size, whole hearings, examples drawn
        first = 0
        for size, weight in zip(sizes, weights, strict=True):
            whole = int(weight)
            drawn = int((weight - whole) * size + 0.5)
            if not whole and not drawn:
                raise DataError(f"a weight of {weight:g} leaves none of a manifest's {size} utterances in an epoch")
            self._parts.append((first, size, whole, drawn))
            first += size
        self.size = sum(size * whole + drawn for _, size, whole, drawn in self._parts)

    def entries(self, seed: int, epoch: int) -> np.ndarray:
        """The entries of an epoch, shape (size,), before they are shuffled."""
        entries = []
        for part, (first, size, whole, drawn) in enumerate(self._parts):
            for hearing in range(whole):
                entries.append(hearing * self.total + first + np.arange(size))
            if drawn:
                rng = np.random.default_rng((seed, epoch, part, drawn))
                entries.append(whole * self.total + first + rng.permutation(size)[:drawn])
        return np.concatenate(entries)
