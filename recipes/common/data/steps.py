"""From an epoch's examples to the steps of it, and from a step to micro-batches."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.large_batch.plan import BatchPlan

# what becomes of the examples of an epoch that do not fill a step
LAST = ("drop", "keep")


class EpochSteps(NamedTuple):
    """How long an epoch is.

    `steps` counts a shorter last one too, which has `short` micro-batches on each rank; 0: there is none. `left_out`
    counts examples.
    """

    steps: int
    short: int = 0
    left_out: int = 0

    def batches(self, accumulate: int) -> int:
        """Micro-batches of each rank."""
        return (self.steps - bool(self.short)) * accumulate + self.short


class GlobalBatch(NamedTuple):
    """What an optimizer step hears, and how it is split.

    Args:
        per_device: examples of a micro-batch, or s of audio in it.
        world_size: number of ranks.
        accumulate: micro-batches per optimizer step.
        by_seconds: whether batches are by seconds.

    Example:
        >>> was, now = GlobalBatch(32, 2), GlobalBatch(32)
        >>> f"{was}; {was.kept_by(now)}", was.size == now.size
        ('64 utterances (32 x 2 ranks x 1 accumulated); large_batch.global_batch_size=64', False)
    """

    per_device: float
    world_size: int = 1
    accumulate: int = 1
    by_seconds: bool = False

    @classmethod
    def of(cls, position: Mapping[str, Any]) -> Self | None:
        """That of a saved position, see `GlobalBatchSampler.state_dict`; None for one of an older release."""
        if any(name not in position for name in ("batch_size", "batch_seconds", "world_size", "accumulate")):
            return None
        seconds = position["batch_seconds"]
        per_device = position["batch_size"] if seconds is None else seconds
        return cls(per_device, position["world_size"], position["accumulate"], seconds is not None)

    @classmethod
    def planned(cls, plan: BatchPlan, seconds: float | None) -> Self:
        """That of a plan; `seconds` of audio are in a micro-batch, where batches are by seconds."""
        per_device = plan.per_device_batch_size if seconds is None else seconds
        return cls(per_device, plan.world_size, plan.accumulate_grad_batches, seconds is not None)

    @property
    def size(self) -> tuple[float, bool]:
        """Of the whole, and whether that is in seconds."""
        return self.per_device * self.world_size * self.accumulate, self.by_seconds

    def kept_by(self, now: "GlobalBatch") -> str:
        """The setting with which a run that has the global batch `now` has this one."""
        if self.by_seconds:
            return f"data.batch_seconds={self.size[0] / (now.world_size * now.accumulate):.12g}"
        return f"large_batch.global_batch_size={self.size[0]}" + " data.batch_seconds=null" * now.by_seconds

    def __str__(self) -> str:
        size, unit = self.size[0], "s of audio" if self.by_seconds else "utterances"
        split = f"{self.per_device:.12g} x {self.world_size} ranks x {self.accumulate} accumulated"
        return f"{size:.12g} {unit} ({split})"


def epoch_steps(
    entries: int, batch_size: int, world_size: int, accumulate: int, last: str = "drop", unit: str = "utterances"
) -> EpochSteps:
    """The steps of an epoch of so many examples.

    Args:
        entries: that an epoch hears.
        batch_size: examples of one micro-batch on one rank.
        world_size: number of ranks.
        accumulate: micro-batches per optimizer step.
        last: what becomes of the examples that do not fill a step, one of `LAST`.
        unit: what they are called in messages.

    Raises:
        DataError: they do not fill one.

    Example:
        >>> epoch_steps(100, 4, 2, 4), epoch_steps(100, 4, 2, 4, "keep")
        (EpochSteps(steps=3, short=0, left_out=4), EpochSteps(steps=4, short=1, left_out=0))
    """
    size = batch_size * world_size * accumulate
    if entries < size:
        one = batch_size * world_size
        largest = entries // one * one
        way = f"large_batch.global_batch_size={largest} fits" if largest else "a smaller data.batch_size may fit"
        raise DataError(
            f"the training set has {entries} {unit}, fewer than one global batch of {size} (batch size "
            f"{batch_size} x {world_size} ranks x accumulation {accumulate}); {way}"
        )
    steps, left_out = divmod(entries, size)
    if left_out and last == "keep":
        return EpochSteps(steps + 1, -(-left_out // (batch_size * world_size)))
    return EpochSteps(steps, 0, left_out)


def epoch_steps_of_seconds(seconds: float, batch_seconds: float, world_size: int, accumulate: int) -> EpochSteps:
    """The steps of an epoch of so much audio, where batches are by seconds.

    Raises:
        DataError: it does not fill one.
    """
    steps = int(seconds / (batch_seconds * world_size * accumulate))
    if steps < 1:
        raise DataError(
            f"the training set has {seconds:g} s of audio, fewer than one global batch of "
            f"{batch_seconds:g} s x {world_size} ranks x accumulation {accumulate}"
        )
    return EpochSteps(steps)


def limited(batches: int, accumulate: int, limit: float | None) -> int:
    """Micro-batches that ``trainer.limit_train_batches`` leaves of an epoch.

    Args:
        batches: of each rank.
        accumulate: that make a step.
        limit: a number of them, or a share (a float); None: all.

    Raises:
        ConfigError: it cuts a step in two, of which Lightning would make one whose loss is too small; the limits that
            work nearby are named.
    """
    taken = min(limit, batches) if isinstance(limit, int) else batches if limit is None else int(batches * limit)
    if taken == batches or taken % accumulate == 0:
        return taken
    below = taken - taken % accumulate
    nearest = " and ".join(str(size) for size in (below, min(below + accumulate, batches)) if size)
    problem = f"{limit:g} takes {taken} of {batches} batches, and a global batch has {accumulate}"
    raise ConfigError("trainer.limit_train_batches", f"{problem}; nearest that work: {nearest}")


def cut(costs: np.ndarray, parts: int) -> np.ndarray:
    """Where to cut a sequence into `parts` runs of equal cost, as nearly as whole elements allow.

    An element belongs to the run that its middle lies in.

    Args:
        costs: of the elements, above 0, shape (N,).
        parts: number of runs.

    Returns:
        Bounds, shape (parts + 1,), from 0 to N.

    Example:
        >>> cut(np.array([1.0, 1.0, 2.0, 4.0]), 2).tolist()
        [0, 3, 4]
    """
    ends = np.cumsum(costs)
    return np.searchsorted(ends - costs / 2, ends[-1] * np.arange(parts + 1) / parts)


def pooled_steps(
    lengths: np.ndarray, costs: np.ndarray, steps: int, pool: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Cut shuffled elements into steps; those of a pool of steps are sorted by length before, so neighbours share one.

    Args:
        lengths: of the elements in their shuffled order, shape (N,).
        costs: of the same elements; all steps of a pool cost the same.
        steps: how many.
        pool: steps that are sorted together, at most; 1 sorts nothing.
        rng: draws the order of the steps.

    Returns:
        Positions of the elements of each step.
    """
    pools = -(-steps // pool)
    steps_of = np.diff(np.arange(pools + 1) * steps // pools)
    # pools in proportion to their numbers of steps
    bounds = cut(costs, steps)[np.concatenate([[0], np.cumsum(steps_of)])]
    made: list[np.ndarray] = []
    for first, end, count in zip(bounds[:-1], bounds[1:], steps_of, strict=True):
        elements = np.arange(first, end)
        if pool > 1:
            elements = elements[np.argsort(-lengths[first:end], kind="stable")]
        made += np.split(elements, cut(costs[elements], int(count))[1:-1])
    return [made[i] for i in rng.permutation(steps)] if pool > 1 else made


def balanced(lengths: np.ndarray, parts: int) -> list[np.ndarray]:
    """Cut elements into micro-batches of neighbours whose longest has as few padded seconds as possible.

    Args:
        lengths: s, longest first, shape (N,).
        parts: number of micro-batches, at most N; none is empty.

    Returns:
        Positions of the elements of each micro-batch.

    Example:
        >>> [batch.tolist() for batch in balanced(np.array([4.0, 2.0, 2.0, 1.0, 1.0]), 2)]
        [[0, 1], [2, 3, 4]]
    """
    low, high = lengths[0], lengths[0] * (len(lengths) + 1)  # enough, however it is rounded
    for _ in range(40):  # to a part in 10^12
        middle = (low + high) / 2
        low, high = (low, middle) if len(_filled(lengths, middle)) <= parts else (middle, high)
    starts = _filled(lengths, high)
    sizes = np.diff([*starts, len(lengths)]).tolist()
    while len(sizes) < parts:  # halve the largest
        largest = sizes.index(max(sizes))
        sizes[largest : largest + 1] = [sizes[largest] - sizes[largest] // 2, sizes[largest] // 2]
    return np.split(np.arange(len(lengths)), np.cumsum(sizes)[:-1])


def _filled(lengths: np.ndarray, capacity: float) -> list[int]:
    """First elements of micro-batches that are filled one after the other, up to `capacity` padded seconds."""
    starts, first = [], 0
    while first < len(lengths):
        starts.append(first)
        first += max(1, int(capacity / lengths[first]))
    return starts
