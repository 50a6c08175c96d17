"""Examples in memory, dealt to optimizer steps, ranks and micro-batches as the speech recipe deals utterances."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from lightning_novograd.recipes.common.data.loader import BatchLoader, ResumableLoader
from lightning_novograd.recipes.common.data.sampler import EvalBatchSampler, GlobalBatchSampler
from lightning_novograd.recipes.common.data.steps import limited
from lightning_novograd.recipes.common.section import Section, key

SPLITS = ("train", "dev", "test")


class Batch(NamedTuple):
    """Some examples.

    Args:
        inputs: of the model, first dimension the examples.
        targets: what it should say, likewise.
        weight: times the mean loss of the batch, averaged over the micro-batches of a step on all ranks, it is the loss
            of the step.
        places: names of the examples, for messages.
    """

    inputs: Tensor
    targets: Tensor
    weight: float = 1.0
    places: Sequence[str] = ()

    @property
    def size(self) -> int:
        """How many examples."""
        return self.inputs.shape[0]


class Examples(Protocol):
    """A set of examples, which knows its inputs and targets by index."""

    def __len__(self) -> int: ...

    def take(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some examples, as that epoch has them."""
        ...


@dataclass(frozen=True, kw_only=True)
class DataSettings(Section):
    """The ``data`` block; each task adds what its corpus needs.

    Args:
        batch_size: examples of a micro-batch on one device.
        eval_batch_size: of a batch in an evaluation.
    """

    batch_size: int = key(64, low=1)
    eval_batch_size: int = key(256, low=1)

    def sets(self, seed: int) -> dict[str, Examples]:
        """The training, dev and test set.

        Args:
            seed: of the run, for what is drawn in training; the sets are the same with every seed.
        """
        raise NotImplementedError


class TaskData(LightningDataModule):
    """Batches of examples that are in memory; a step has the same ones however many ranks share it.

    Args:
        sets: by name, see `SPLITS`.
        settings: the ``data`` block.
        batch_size: instead of that of `settings`, for a global batch that was solved.
        seed: of the order.
        unit: what examples are called.
        last: ``"drop"`` or ``"keep"`` the examples that do not fill a global batch; see `GlobalBatchSampler`.
    """

    has_test_set = True

    def __init__(
        self,
        sets: Mapping[str, Examples],
        settings: DataSettings,
        *,
        batch_size: int | None = None,
        seed: int = 0,
        unit: str = "examples",
        last: str = "drop",
    ) -> None:
        super().__init__()
        self.sets, self.settings, self.seed, self.unit, self.last = dict(sets), settings, seed, unit, last
        self.batch_size = batch_size or settings.batch_size

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches; the position survives a checkpoint."""
        trainer, examples = self.trainer, self.sets["train"]
        accumulate = 1 if trainer is None else trainer.accumulate_grad_batches
        sampler = GlobalBatchSampler(
            [1.0] * len(examples),
            self.batch_size,
            accumulate=accumulate,
            seed=self.seed,
            shuffle=not getattr(trainer, "overfit_batches", False),
            last=self.last,
            unit=self.unit,
            **self._place(),
        )
        if not getattr(trainer, "fast_dev_run", False):
            limited(len(sampler), accumulate, getattr(trainer, "limit_train_batches", None))
        return ResumableLoader(_Keys(), sampler, partial(collate, examples, "train"))

    def val_dataloader(self) -> BatchLoader:
        """The dev set, every example once."""
        return self._eval_loader("dev")

    def test_dataloader(self) -> BatchLoader:
        """The test set, every example once."""
        return self._eval_loader("test")

    def _eval_loader(self, split: str) -> BatchLoader:
        examples = self.sets[split]
        sampler = EvalBatchSampler([1.0] * len(examples), self.settings.eval_batch_size, **self._place())
        return BatchLoader(_Keys(), sampler, partial(collate, examples, split))

    def _place(self) -> dict[str, Any]:
        if self.trainer is None:
            return {"world_size": 1, "rank": 0}
        return {"world_size": self.trainer.world_size, "rank": self.trainer.global_rank}


class _Keys(Dataset[Any]):
    """Hands on what it is asked for: whole batches are looked up at once."""

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, int]:
        return key


def collate(examples: Examples, name: str, keys: Sequence[tuple[int, int]]) -> Batch:
    """A batch of examples.

    Args:
        examples: the set.
        name: of it.
        keys: epoch and index of each.
    """
    indices = [index for _, index in keys]
    inputs, targets = examples.take(indices, keys[0][0])
    return Batch(inputs, targets, places=[f"{name}:{index}" for index in indices])
