"""Which utterances make a batch, on which rank, in which step."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from lightning_novograd.errors import ConfigError, DataError

log = logging.getLogger(__name__)


class GlobalBatchSampler(Sampler[list[int]]):
    """Training batches, defined by what an optimizer step sees and only then split over ranks and micro-batches.

    Step `s` of epoch `e` uses entries ``[s G, (s + 1) G)`` of a permutation drawn from ``(seed, e)``, where
    ``G = batch_size * world_size * accumulate``. One process with batch 64 and two ranks with batch 16 and
    accumulation 2 so make the same 62 updates from the same utterances. Inside a step the utterances are sorted by
    duration and cut into micro-batches of neighbours, which have little padding; each rank's share of micro-batches
    is chosen so that all ranks are busy for about the same time, and their order is drawn at random, so that no rank
    and no micro-batch (BatchNorm's statistics are those of rank 0 and favour the last) always has the long ones.

    The ``n % G`` utterances that do not fill a step are left out of an epoch, other ones in every epoch.

    The position can be saved and restored: `delivered` counts this rank's batches of the epoch that have reached the
    training loop (`ResumableLoader` keeps it), and iteration begins there.

    Args:
        durations: s, of the utterances; their order defines the indices.
        batch_size: utterances of one micro-batch on one rank.
        world_size: number of ranks.
        rank: this one.
        accumulate: micro-batches per optimizer step.
        seed: of the permutations.
        shuffle: False takes the utterances in the same order in every epoch (to overfit a few batches).

    Raises:
        DataError: fewer utterances than one global batch needs.
        ValueError: arguments out of range.

    Example:
        >>> sampler = GlobalBatchSampler([3.0, 1.0, 2.0, 4.0], batch_size=2, accumulate=2, seed=1)
        >>> sorted(sorted(batch) for batch in sampler)
        [[0, 3], [1, 2]]
    """

    def __init__(
        self,
        durations: Sequence[float],
        batch_size: int,
        *,
        world_size: int = 1,
        rank: int = 0,
        accumulate: int = 1,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        _check_geometry(batch_size, world_size, rank)
        if accumulate < 1:
            raise ValueError(f"accumulate must be at least 1, not {accumulate}")
        self.durations = np.asarray(durations, dtype=np.float64)
        self.batch_size, self.world_size, self.rank, self.accumulate = batch_size, world_size, rank, accumulate
        self.seed, self.shuffle = seed, shuffle
        self.epoch = 0
        self.delivered = 0
        self.global_batch_size = batch_size * world_size * accumulate
        if len(self.durations) < self.global_batch_size:
            raise DataError(
                f"the training set has {len(self.durations)} utterances, fewer than one global batch of "
                f"{self.global_batch_size} (batch size {batch_size} x {world_size} ranks x accumulation {accumulate})"
            )
        self.steps, left_out = divmod(len(self.durations), self.global_batch_size)
        if left_out and rank == 0:
            log.info(
                "%d of %d utterances do not fill a global batch of %d and are left out of each epoch, other ones in "
                "every epoch",
                left_out,
                len(self.durations),
                self.global_batch_size,
            )

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank, wherever iteration begins."""
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        first_step, skipped = divmod(self.delivered, self.accumulate)
        order = self._order()
        for step in range(first_step, self.steps):
            batches = self._deal(order[step], step)
            yield from batches[skipped if step == first_step else 0 :].tolist()

    def _order(self) -> np.ndarray:
        """Utterances of every step of the epoch, shape (steps, G)."""
        n = len(self.durations)
        order = np.random.default_rng((self.seed, self.epoch)).permutation(n) if self.shuffle else np.arange(n)
        return order[: self.steps * self.global_batch_size].reshape(self.steps, self.global_batch_size)

    def _deal(self, utterances: np.ndarray, step: int) -> np.ndarray:
        """Micro-batches of this rank in one step, shape (accumulate, batch_size)."""
        by_duration = utterances[np.argsort(-self.durations[utterances], kind="stable")]
        rounds = by_duration.reshape(self.accumulate, self.world_size, self.batch_size)
        rng = np.random.default_rng((self.seed, self.epoch, step))
        load = np.zeros(self.world_size)
        mine = []
        for micro_batches in rounds:
            # The longest micro-batch of a round goes to the rank that has had the least so far.
            longest = self.durations[micro_batches[:, 0]]
            tie_break = rng.permutation(self.world_size)
            ranks = tie_break[np.argsort(load[tie_break], kind="stable")]
            load[ranks] += longest
            mine.append(micro_batches[np.flatnonzero(ranks == self.rank)[0]])
        return np.stack(mine)[rng.permutation(self.accumulate)]

    def set_epoch(self, epoch: int) -> None:
        """Begin `epoch`; the epoch that is already under way goes on where it is."""
        if epoch != self.epoch:
            self.epoch, self.delivered = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it is a position in."""
        return {"epoch": self.epoch, "delivered": self.delivered, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved position.

        Raises:
            ConfigError: the position is inside an epoch and data, seed or batch geometry are not those it was saved
                with. Between epochs they may change.
        """
        if 0 < state["delivered"] < state["batches"]:
            for key, value in self._identity().items():
                if state[key] != value:
                    raise ConfigError(
                        "",
                        f"cannot resume in mid-epoch: {key} was {state[key]} when the checkpoint was saved and is "
                        f"{value} now; restore it, or resume from a checkpoint of the end of an epoch",
                    )
        ended = state["delivered"] >= state["batches"]
        self.epoch, self.delivered = state["epoch"], len(self) if ended else state["delivered"]

    def _identity(self) -> dict[str, int]:
        return {
            "utterances": len(self.durations),
            "batch_size": self.batch_size,
            "world_size": self.world_size,
            "accumulate": self.accumulate,
            "seed": self.seed,
            "batches": len(self),
        }


class EvalBatchSampler(Sampler[list[int]]):
    """Evaluation batches: every utterance exactly once over all ranks, equally many batches on each.

    Sorted by duration, longest first: little padding, and a batch that does not fit in memory fails at once.

    Args:
        durations: s, of the utterances.
        batch_size: most utterances of a batch. It is exceeded by one only where the number of batches could not be
            equal otherwise (batch size 1, several ranks).
        world_size: number of ranks.
        rank: this one.

    Raises:
        DataError: fewer utterances than ranks.
        ValueError: arguments out of range.

    Example:
        >>> [batch for rank in (0, 1) for batch in EvalBatchSampler([3.0, 1.0, 2.0], 2, world_size=2, rank=rank)]
        [[0, 2], [1]]
    """

    def __init__(self, durations: Sequence[float], batch_size: int, *, world_size: int = 1, rank: int = 0) -> None:
        _check_geometry(batch_size, world_size, rank)
        n = len(durations)
        if n < world_size:
            raise DataError(f"{n} utterances cannot be spread over {world_size} ranks; evaluate on fewer")
        self.epoch = 0
        per_rank = min(-(-n // (batch_size * world_size)), n // world_size)
        by_duration = np.argsort(-np.asarray(durations, dtype=np.float64), kind="stable")
        self.batches = [
            chunk.tolist() for chunk in np.array_split(by_duration, per_rank * world_size)[rank::world_size]
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def _check_geometry(batch_size: int, world_size: int, rank: int) -> None:
    if batch_size < 1 or world_size < 1:
        raise ValueError(f"batch_size and world_size must be at least 1, not {batch_size} and {world_size}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in 0..{world_size - 1}, not {rank}")
