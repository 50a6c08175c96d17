"""Which examples make a batch, on which rank, in which step."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.log import rank_zero_logger
from lightning_novograd.recipes.common.data.mixture import Mixture
from lightning_novograd.recipes.common.data.steps import (
    LAST,
    EpochSteps,
    GlobalBatch,
    balanced,
    epoch_steps,
    epoch_steps_of_seconds,
    pooled_steps,
)

log = rank_zero_logger(__name__)


class MicroBatch(list[int]):
    """Examples of a micro-batch, by their indices.

    Args:
        indices: the examples.
        weight: of their mean loss in the mean over the micro-batches of the step, so that it is that over all the
            examples of the step, or over their characters; 0: they fill in for a rank that has none left.
    """

    def __init__(self, indices: Iterable[int], weight: float = 1.0) -> None:
        super().__init__(indices)
        self.weight = weight


class GlobalBatchSampler(Sampler[list[int]]):
    """Training batches, defined by what an optimizer step sees and only then split over ranks and micro-batches.

    The entries of an epoch are shuffled by ``(seed, epoch)`` and cut into pools of `bucket_steps` global batches.
    Sorted by duration, a pool is cut into batches of ``G = batch_size * world_size * accumulate`` neighbours, which
    have little padding; the order of the steps is drawn at random. One process with batch 64 and two ranks with batch
    16 and accumulation 2 so make the same updates from the same examples. Inside a step the examples are cut into
    micro-batches of neighbours; each rank's share of micro-batches is chosen so that all ranks are busy for about the
    same time, and their order is drawn at random, so that no rank and no micro-batch (BatchNorm's statistics are those
    of rank 0 and favour the last) always has the long ones.

    The ``n % G`` entries that do not fill a step are left out of an epoch, other ones in every epoch; or, with
    ``last="keep"``, they are its last step, in as few micro-batches of equal size as there is room for, equally many on
    each rank. A rank for which none is left hears one again, with the weight 0.

    With `batch_seconds` a step has ``batch_seconds * world_size * accumulate`` seconds of audio, to within an
    example, whatever the number of examples; it is cut into micro-batches of about equal padded seconds.

    The weights of micro-batches make the mean over those of all ranks and rounds of accumulation, as Lightning and DDP
    take it, the mean over all examples of the step (by `counts`, or their sum), however unequal the micro-batches
    are. Every rank knows the whole step, so none asks another for it.

    The position can be saved and restored: `delivered` counts this rank's batches of the epoch that have reached the
    training loop (`ResumableLoader` keeps it), and iteration begins there.

    Args:
        durations: s, of the examples; their order defines the indices.
        batch_size: examples of one micro-batch on one rank.
        world_size: number of ranks.
        rank: this one.
        accumulate: micro-batches per optimizer step.
        seed: of the permutations.
        shuffle: False takes the examples in the same order in every epoch (to overfit a few batches); then nothing is
            sorted across steps.
        batch_seconds: s, of audio in a micro-batch, instead of `batch_size`; padding comes on top. At least twice the
            longest example.
        bucket_steps: global batches of a pool. It is at most a quarter of an epoch, so that examples do not meet the
            same ones in every epoch; 1 sorts nothing across steps.
        mixture: how often which examples are heard in an epoch; None: each once. Index ``k * n + i`` is the
            example `i` of `n`, heard once more.
        lengths: s, of entries (int64) in an epoch, where these are not `durations` (speed perturbation).
        last: what becomes of the entries that do not fill a step: ``"drop"`` or ``"keep"``.
        counts: what each example counts in the mean loss of a step, such as its characters; None: all the same.
        sums: a step's loss is the sum of its examples', not their mean.
        unit: what the examples are called in messages.

    Raises:
        DataError: fewer examples than one global batch needs, or one too long for `batch_seconds`.
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
        batch_seconds: float | None = None,
        bucket_steps: int = 1,
        mixture: Mixture | None = None,
        lengths: Callable[[int, np.ndarray], np.ndarray] | None = None,
        last: str = "drop",
        counts: Sequence[int] | None = None,
        sums: bool = False,
        unit: str = "utterances",
    ) -> None:
        _check_geometry(batch_size, world_size, rank)
        for name, value in (("accumulate", accumulate), ("bucket_steps", bucket_steps)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if last not in LAST:
            raise ValueError(f"last must be one of {', '.join(LAST)}, not {last!r}")
        if last == "keep" and batch_seconds is not None:
            raise ValueError("last='keep' is for batches of utterances; those of batch_seconds have no remainder")
        self.durations = np.asarray(durations, dtype=np.float64)
        self.batch_size, self.world_size, self.rank, self.accumulate = batch_size, world_size, rank, accumulate
        self.seed, self.shuffle, self.bucket_steps, self.batch_seconds = seed, shuffle, bucket_steps, batch_seconds
        self.mixture, self._lengths = mixture, lengths
        self.sums = sums
        self._counts = np.ones(len(self.durations)) if counts is None else np.asarray(counts, dtype=np.float64)
        self._short = 0  # micro-batches of each rank in a last step that is shorter; 0: there is none
        self.epoch = 0
        self.delivered = 0
        self.global_batch_size = batch_size * world_size * accumulate
        self._planned: tuple[int, list[tuple[np.ndarray, np.ndarray]]] | None = None
        self._resumed: tuple[int, int] | None = None  # an epoch that was begun with other bucket_steps, and these
        if batch_seconds is not None:
            self._seconds = float(np.sum(self.durations * (1.0 if mixture is None else mixture.weights)))
            self.steps = self._count_steps(batch_seconds)
            return
        entries = len(self.durations) if mixture is None else mixture.size
        self.steps, self._short, left_out = epoch_steps(entries, batch_size, world_size, accumulate, last, unit)
        if left_out and rank == 0:
            log.info(
                "%d of %d %s do not fill a global batch of %d and are left out of each epoch, other ones in "
                "every epoch",
                left_out,
                entries,
                unit,
                self.global_batch_size,
            )
        if self._short and rank == 0:
            kept = entries % self.global_batch_size
            log.info("the last step of each epoch has %d %s, the others have %d", kept, unit, self.global_batch_size)

    def _count_steps(self, batch_seconds: float) -> int:
        """Steps of so many seconds in an epoch, which is equally long every time."""
        longest = self.durations.max()
        if batch_seconds < 2 * longest:
            raise DataError(
                f"data.batch_seconds is {batch_seconds:g}, but must be at least twice the longest utterance of the "
                f"training set, which has {longest:g} s; data.max_duration leaves long ones out"
            )
        return epoch_steps_of_seconds(self._seconds, batch_seconds, self.world_size, self.accumulate).steps

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank, wherever iteration begins."""
        return EpochSteps(self.steps, self._short).batches(self.accumulate)

    def __iter__(self) -> Iterator[list[int]]:
        first_step, skipped = divmod(self.delivered, self.accumulate)
        plan = self._plan()
        for step in range(first_step, self.steps):
            entries, lengths = plan[step]
            batches = self._deal(lengths, step)[self.rank]
            for batch in batches[skipped if step == first_step else 0 :]:
                if len(batch):
                    yield MicroBatch(entries[batch].tolist(), self._weight(entries, batch))
                else:
                    yield MicroBatch([int(entries[lengths.argmin()])], 0.0)

    def _weight(self, entries: np.ndarray, batch: np.ndarray) -> float:
        """What the mean loss of a micro-batch of a step is multiplied by.

        Lightning divides by `accumulate` and DDP by `world_size`, in a shorter step too.
        """
        counts = self._counts[entries % len(self._counts)]
        whole = 1.0 if self.sums else float(counts.sum())
        return float(counts[batch].sum()) * self.world_size * self.accumulate / whole

    def padding(self) -> float:
        """The share of padding in the samples of this epoch's batches, over all ranks."""
        heard = padded = 0.0
        for step, (_, lengths) in enumerate(self._plan()):
            heard += lengths.sum()
            batches = (batch for rank in self._deal(lengths, step) for batch in rank)
            padded += sum(len(batch) * lengths[batch].max() for batch in batches if len(batch))
        return 1.0 - heard / padded

    def _plan(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Entries of every step of the epoch, and their lengths."""
        if self._planned is None or self._planned[0] != self.epoch:
            self._planned = self.epoch, self._new_plan()
        return self._planned[1]

    def _new_plan(self) -> list[tuple[np.ndarray, np.ndarray]]:
        n = len(self.durations)
        entries = np.arange(n) if self.mixture is None else self.mixture.entries(self.seed, self.epoch)
        rng = np.random.default_rng((self.seed, self.epoch))
        order = entries[rng.permutation(len(entries))] if self.shuffle else entries
        whole_steps, rest = self.steps - bool(self._short), order[:0]
        if self.batch_seconds is None:
            end = whole_steps * self.global_batch_size
            order, rest = order[:end], order[end:] if self._short else rest
            costs = np.ones(len(order))
        else:
            costs = self.durations[order % n]
            # a mixture draws longer or shorter ones; the number of steps stays, and nothing more is left out for it
            wanted = self.steps * self.batch_seconds * self.world_size * self.accumulate * costs.sum() / self._seconds
            kept = int(np.searchsorted(np.cumsum(costs) - costs / 2, wanted))
            order, costs = order[:kept], costs[:kept]
        lengths = self._heard(order)
        pool = max(1, min(self._bucket_steps(), whole_steps // 4)) if self.shuffle else 1
        plan = [(order[step], lengths[step]) for step in pooled_steps(lengths, costs, whole_steps, pool, rng)]
        return [*plan, (rest, self._heard(rest))] if len(rest) else plan

    def _heard(self, entries: np.ndarray) -> np.ndarray:
        """How long entries are in this epoch, s."""
        if self._lengths is None:
            return self.durations[entries % len(self.durations)]
        return self._lengths(self.epoch, entries)

    def _bucket_steps(self) -> int:
        """Of this epoch."""
        return self._resumed[1] if self._resumed is not None and self._resumed[0] == self.epoch else self.bucket_steps

    def _deal(self, lengths: np.ndarray, step: int) -> list[list[np.ndarray]]:
        """Micro-batches of every rank in one step whose examples are so long; empty where none is left for a rank."""
        longest_first = np.argsort(-lengths, kind="stable")
        rounds = self.accumulate
        if self._short and step == self.steps - 1:
            rounds = self._short
            batches = np.array_split(longest_first, rounds * self.world_size)
            works = np.array([len(batch) * lengths[batch].max(initial=0.0) for batch in batches])
        elif self.batch_seconds is None:
            batches = list(longest_first.reshape(-1, self.batch_size))
            works = lengths[longest_first[:: self.batch_size]]
        else:
            cuts = balanced(lengths[longest_first], self.accumulate * self.world_size)
            batches = sorted((longest_first[cut] for cut in cuts), key=lambda batch: -len(batch) * lengths[batch[0]])
            works = np.array([len(batch) * lengths[batch[0]] for batch in batches])
        rng = np.random.default_rng((self.seed, self.epoch, step))
        load = np.zeros(self.world_size)
        dealt: list[list[np.ndarray]] = [[] for _ in range(self.world_size)]
        for first in range(0, len(batches), self.world_size):
            # The longest micro-batch of a round goes to the rank that has had the least so far.
            tie_break = rng.permutation(self.world_size)
            ranks = tie_break[np.argsort(load[tie_break], kind="stable")]
            load[ranks] += works[first : first + self.world_size]
            for rank, batch in zip(ranks, batches[first : first + self.world_size], strict=True):
                dealt[rank].append(batch)
        order = rng.permutation(rounds)
        return [[batches[i] for i in order] for batches in dealt]

    def set_epoch(self, epoch: int) -> None:
        """Begin `epoch`; the epoch that is already under way goes on where it is."""
        if epoch != self.epoch:
            self.epoch, self.delivered = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it is a position in."""
        position = {"epoch": self.epoch, "delivered": self.delivered, **self._identity()}
        return {**position, "bucket_steps": self._bucket_steps(), "order": self._order()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved position; the epoch under way ends with the `bucket_steps` that it began with.

        Raises:
            ConfigError: the position is inside an epoch and data, seed or global batch are not those it was saved
                with. Between epochs they may change; how ranks and accumulation split the global batch may always.
        """
        ended = state["delivered"] >= state["batches"]
        self.epoch, self.delivered = state["epoch"], len(self) if ended else state["delivered"]
        now = self._identity()
        changed = {key: value for key, value in now.items() if state.get(key) != value}
        if not 0 < state["delivered"] < state["batches"]:
            is_same_plan = not changed and state.get("bucket_steps") == self.bucket_steps and "order" in state
            if "utterances" in changed or (is_same_plan and state["order"] != self._order()):
                utterances = f"{state.get('utterances')} utterances then, {now['utterances']} now"
                log.warning("the training set is not the one that the checkpoint was saved with (%s)", utterances)
            return
        saved_batch, batch = GlobalBatch.of(state), GlobalBatch.of(now)
        if saved_batch is not None and batch is not None and changed.keys() & set(_SPLIT):
            said = _said(changed, state)
            if saved_batch.size != batch.size:
                problem = f"the global batch was {saved_batch} and is {batch}: {said}"
                advice = f"{saved_batch.kept_by(batch)} restores it, or resume from a checkpoint of the end of an epoch"
                raise ConfigError("", f"cannot resume in mid-epoch: {problem}; {advice}")
            if -(-state["batches"] // state["accumulate"]) == self.steps:
                # an accumulation that was begun begins again
                self.delivered = state["delivered"] // state["accumulate"] * self.accumulate
                changed = {key: value for key, value in changed.items() if key not in _SPLIT}
        # a checkpoint of before there were any has none
        self._resumed, self._planned = (self.epoch, state.get("bucket_steps", 1)), None
        problem = _said(changed, state)
        if not changed and state.get("order", self._order()) != self._order():
            problem = "the training set has other durations, weights or speeds than when the checkpoint was saved"
        if problem:
            advice = "restore it, or resume from a checkpoint of the end of an epoch"
            raise ConfigError("", f"cannot resume in mid-epoch: {problem}; {advice}")

    def _identity(self) -> dict[str, int | float | None]:
        return {
            "utterances": len(self.durations),
            "batch_size": self.batch_size,
            "batch_seconds": self.batch_seconds,
            "world_size": self.world_size,
            "accumulate": self.accumulate,
            "seed": self.seed,
            "batches": len(self),
        }

    def _order(self) -> int:
        """A checksum of what this epoch hears, step by step."""
        checksum = 0
        for entries, lengths in self._plan():
            checksum = zlib.crc32(lengths.tobytes(), zlib.crc32(entries.tobytes(), checksum))
        return checksum


# how a global batch is split; a step is the same examples however it is
_SPLIT = ("batch_size", "batch_seconds", "world_size", "accumulate", "batches")


def _said(changed: Mapping[str, Any], saved: Mapping[str, Any]) -> str:
    names = [name for name in changed if name != "batches"] or changed  # which follow from the others
    return ", ".join(
        f"{name} was {saved.get(name)} when the checkpoint was saved and is {changed[name]} now" for name in names
    )


class EvalBatchSampler(Sampler[list[int]]):
    """Evaluation batches: every example exactly once over all ranks, equally many batches on each.

    Sorted by duration, longest first: little padding, and a batch that does not fit in memory fails at once.

    Args:
        durations: s, of the examples.
        batch_size: most examples of a batch. It is exceeded by one only where the number of batches could not be
            equal otherwise (batch size 1, several ranks).
        world_size: number of ranks.
        rank: this one.

    Raises:
        DataError: fewer examples than ranks.
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
