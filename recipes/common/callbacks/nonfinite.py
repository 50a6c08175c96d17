"""NaN and infinity in a training: an error that names the step and the examples, or a step that is left out."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_novograd.errors import DataError, LightningNovoGradError
from lightning_novograd.recipes.common.checkpoints.finite import nonfinite_names

log = logging.getLogger(__name__)

T = TypeVar("T")
NAMED = 8  # examples named in a message
CALIBRATION = 20  # steps that a GradScaler may skip beyond: from 65536 to below 1 it halves its scale so often


class DivergenceError(LightningNovoGradError, ArithmeticError):
    """A training whose loss, gradients or weights are no longer finite."""


class Inbox(Protocol):
    """Signals that this process has got, and those that all ranks know of."""

    def votes(self) -> list[float]:
        """Numbers to be summed over the ranks."""
        ...

    def count(self, summed: Sequence[float]) -> None:
        """Take the sums."""
        ...


class _Seen(NamedTuple):
    """A micro-batch of the optimizer step under way: what is finite in it stays on the device until the step."""

    places: Sequence[str]
    samples_B: Tensor
    loss: Tensor


class _Found(NamedTuple):
    """What is not finite in an optimizer step: places of examples, and names of parameters."""

    samples: list[str]
    weights: list[str]
    losses: list[str]
    gradients: list[str]
    places: list[str]  # of all its examples


class NonFiniteGuard(pl.Callback):
    """Sees to it that no optimizer step is made of NaN or infinity, and that no checkpoint holds such weights.

    Whether a step is bad is decided once per optimizer step, before the optimizer moves, from the losses and samples of
    all its micro-batches and from the gradients, by all ranks alike: one number is summed over the ranks. Gradients
    that overflow under a GradScaler are left to it, unless it skips more than `max_consecutive` + 20 steps in a row,
    which no scale explains.

    A step that is skipped leaves weights, optimizer and schedule as they are (as a GradScaler's do), and BatchNorm's
    running statistics as they were before its first micro-batch. Lightning counts it in ``global_step`` all the same.

    Signals that ask the run to end travel with that number (`inbox`): the ranks agree on them without a further sum.

    Args:
        action: ``"raise"``, or ``"skip"`` to leave bad steps out.
        max_consecutive: bad steps in a row that are skipped; one more is an error. 20 more of a GradScaler's, whatever
            the action, as it begins with a scale that is too large.
        samples: the tensor of a batch whose rows are its samples.
    """

    def __init__(self, action: str = "raise", max_consecutive: int = 10, samples: str = "inputs") -> None:
        self.action, self.max_consecutive, self.samples = action, max_consecutive, samples
        self.inbox: Inbox | None = None
        self.skipped = 0
        self.consecutive = 0
        self._overflows = 0  # steps in a row that a GradScaler has skipped
        self._window: list[_Seen] = []
        self._statistics: list[tuple[Tensor, Tensor]] = []

    @property
    def is_skipping(self) -> bool:
        """Whether the last optimizer step was left out."""
        return self.consecutive > 0

    def state_dict(self) -> dict[str, Any]:
        """Steps left out so far."""
        return {"skipped": self.skipped, "consecutive": self.consecutive}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped, self.consecutive = int(state_dict["skipped"]), int(state_dict["consecutive"])

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin a new window with the first micro-batch of an optimizer step."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._window.clear()
            if self.action == "skip":
                self._statistics = [(kept, kept.clone()) for kept in running_statistics(pl_module)]
        # a sum has one number that is not finite if the samples have; and no array of booleans is made
        samples_B = torch.isfinite(getattr(batch, self.samples).detach().flatten(1).sum(dim=1, dtype=torch.float32))
        self._window.append(_Seen(batch.places, samples_B, torch.zeros(())))

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Note the loss of the micro-batch."""
        self._window[-1] = self._window[-1]._replace(loss=loss.detach())

    def passes(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Whether the optimizer may step on the gradients that there are; asked on all ranks together.

        Raises:
            DataError: samples are not finite, and bad steps are not to be skipped.
            DivergenceError: a loss or a gradient is not; or a weight already, or too many steps in a row have been bad.
        """
        numbers = [seen.loss.float() for seen in self._window]
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            numbers += gradient_sizes(pl_module)
        are_finite = [torch.isfinite(torch.stack(numbers)).all(), *(seen.samples_B.all() for seen in self._window)]
        is_bad = ~torch.stack(are_finite).all()
        if not self._sum(trainer, is_bad):
            self.consecutive = 0
            return True
        self.consecutive += 1
        found = self._find(trainer, pl_module)
        error = self._explain(trainer, found)
        if self.action == "raise" or found.weights:
            raise error
        if self.consecutive > self.max_consecutive:
            raise DivergenceError(f"{self.consecutive} optimizer steps in a row are not finite, the last: {error}")
        self.skipped += 1
        if trainer.is_global_zero:
            log.warning("%s; the step is left out (%d so far, %d in a row)", error, self.skipped, self.consecutive)
        for kept, before in self._statistics:
            kept.copy_(before)
        pl_module.zero_grad(set_to_none=True)
        return False

    def _sum(self, trainer: pl.Trainer, is_bad: Tensor) -> float:
        """How many ranks have a bad step."""
        if self.inbox is None:
            return summed(trainer, is_bad.float()).item()
        votes = torch.tensor([0.0, *self.inbox.votes()], device=is_bad.device)
        votes[0] = is_bad
        bad, *votes_of_all = summed(trainer, votes).tolist()
        self.inbox.count(votes_of_all)
        return bad

    def note_scaled_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, has_stepped: bool) -> None:
        """Count the steps that a GradScaler skips; it finds the same gradients on all ranks.

        Args:
            trainer: whose optimizer was to step just now.
            pl_module: with the gradients of that step.
            has_stepped: whether it did.

        Raises:
            DivergenceError: too many steps in a row have overflowed.
        """
        self._overflows = 0 if has_stepped else self._overflows + 1
        if self._overflows > self.max_consecutive + CALIBRATION:
            error = self._explain(trainer, self._find(trainer, pl_module))
            skipped = f"{self._overflows} optimizer steps in a row were skipped by the GradScaler"
            raise DivergenceError(f"{skipped}, the last: {error}")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate no weights that are not finite."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._check_weights(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the last step's weights."""
        self._check_weights(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save no weights that are not finite."""
        self._check_weights(trainer, pl_module)

    def _check_weights(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if names := merge(trainer, nonfinite_names(pl_module.state_dict())):
            raise DivergenceError(f"after optimizer step {trainer.global_step} {_weights(names)}{_HINT}")

    def _find(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> _Found:
        """What is not finite in the window, on all ranks; they ask each other once, whatever each of them has found."""
        window = self._window
        of_samples = [zip(seen.places, seen.samples_B.tolist(), strict=False) for seen in window]
        parameters = dict(pl_module.named_parameters())  # the running statistics are those of this very batch
        mine = _Found(
            samples=[place for places in of_samples for place, is_finite in places if not is_finite],
            weights=nonfinite_names(parameters),
            losses=[place for seen in window if not torch.isfinite(seen.loss) for place in seen.places],
            gradients=nonfinite_names({name: p.grad for name, p in parameters.items()}),
            places=[place for seen in window for place in seen.places],
        )
        return _Found(
            *([text for texts in lists for text in texts] for lists in zip(*merge(trainer, [mine]), strict=True))
        )

    def _explain(self, trainer: pl.Trainer, found: _Found) -> LightningNovoGradError:
        """The first cause of what is not finite."""
        step = f"optimizer step {trainer.global_step + 1} (epoch {trainer.current_epoch + 1})"
        if found.samples:
            return DataError(f"{step}: samples that are not finite (NaN or infinity) in {shown(found.samples)}")
        if found.weights:
            return DivergenceError(f"{step}: {_weights(found.weights)}{_HINT}")
        if found.losses:
            return DivergenceError(f"{step}: the loss of {shown(found.losses)} is not finite (NaN or infinity){_HINT}")
        problem = f"the gradient of {shown(found.gradients, 2)} is not finite (NaN or infinity)"
        return DivergenceError(f"{step}: {problem}, after {shown(found.places)}{_HINT}")


_HINT = "; a lower optim.lr, a longer warmup or optim.grad_clip_norm may help"


def running_statistics(module: nn.Module) -> Iterator[Tensor]:
    """What normalization layers keep of the batches they have seen."""
    for layer in module.modules():
        if isinstance(layer, _NormBase):
            yield from layer.buffers(recurse=False)


def gradient_sizes(module: nn.Module) -> list[Tensor]:
    """The largest absolute value of each gradient; of this rank's part where gradients are sharded."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    local = [g.to_local() if hasattr(g, "to_local") else g for g in gradients]
    dense = [g.coalesce().values() if g.is_sparse else g for g in local]
    held = [g for g in dense if g.numel()]
    return [size.float() for size in torch._foreach_norm(held, float("inf"))] if held else []


def summed(trainer: pl.Trainer, numbers: Tensor) -> Tensor:
    """Sums over all ranks. Lightning's `reduce` has a barrier before the sum: ranks would wait twice in every step.

    Args:
        trainer: of this rank.
        numbers: on the device of its collectives; may be changed.
    """
    if dist.is_available() and dist.is_initialized() and trainer.world_size > 1:
        dist.all_reduce(numbers)
        return numbers
    return trainer.strategy.reduce(numbers, reduce_op="sum")


def merge(trainer: pl.Trainer, mine: Sequence[T]) -> list[T]:
    """What all ranks have."""
    if trainer.world_size == 1:
        return list(mine)
    of_ranks: list[Any] = [None] * trainer.world_size
    dist.all_gather_object(of_ranks, list(mine))
    return [item for items in of_ranks for item in items]


def shown(names: Iterable[str], most: int = NAMED) -> str:
    """The first names, and how many more there are."""
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - most} more" if len(unique) > most else ""
    return ", ".join(unique[:most]) + more


def _weights(names: Sequence[str]) -> str:
    return f"weights are not finite (NaN or infinity): {shown(names, 2)}"
