"""The ``large_batch`` block of the config."""

from dataclasses import dataclass
from typing import Any, Self, get_args

from lightning_novograd.errors import ConfigError
from lightning_novograd.large_batch.plan import LrRule
from lightning_novograd.recipes.common.data.steps import LAST
from lightning_novograd.recipes.common.section import Section, join, key, plain_mapping


@dataclass(frozen=True, kw_only=True)
class ReferenceSettings(Section):
    """The ``large_batch.reference`` block: where the learning rate was tuned.

    Args:
        global_batch_size: examples of a step there; None: nothing is scaled.
        lr: what was found; None: ``optim.lr``, which every option of ``optim`` has.
    """

    global_batch_size: int | None = key(None, low=1)
    lr: float | None = key(None, above=0.0)

    def check(self) -> None:
        """A learning rate was tuned at some batch."""
        if self.lr is not None and self.global_batch_size is None:
            raise ConfigError("global_batch_size", f"is missing: lr={self.lr:g} was tuned at which global batch?")


@dataclass(frozen=True, kw_only=True)
class LargeBatchSettings(Section):
    """The ``large_batch`` block.

    Args:
        global_batch_size: examples behind one optimizer step; None: what the trainer and data blocks amount to. A
            list of stages is refused by :func:`plan_batches`.
        max_per_device_batch_size: what fits into a device's memory, in place of ``data.batch_size``: the largest
            micro-batch up to it that splits the global batch is taken.
        reference: see :class:`ReferenceSettings`.
        lr_scaling: how the LR follows the ratio of the global batch to the reference's, see :func:`scale_lr`.
        warmup_ratio: share of the run's steps, in place of that of ``optim.sched``.
        last: whether the examples that do not fill a global batch are left out of an epoch, other ones in every
            epoch, or are its last, shorter step.
    """

    global_batch_size: int | list | None = key(None, low=1)
    max_per_device_batch_size: int | None = key(None, low=1)
    reference: ReferenceSettings = key(ReferenceSettings())
    lr_scaling: str | None = key(None, allowed=(*get_args(LrRule), None))
    warmup_ratio: float | None = key(None, low=0.0, high=1.0)
    last: str = key("drop", allowed=LAST)

    def check(self) -> None:
        """Nothing is given that would do nothing."""
        if self.max_per_device_batch_size is not None and self.global_batch_size is None:
            problem = "is for splitting global_batch_size, which is null; without it use data.batch_size"
            raise ConfigError("max_per_device_batch_size", problem)
        tuned = self.reference.global_batch_size
        if tuned is not None and self.lr_scaling is None:
            problem = f"is null, but there is a reference, a global batch of {tuned}: say linear, sqrt or none"
            raise ConfigError("lr_scaling", problem)
        if tuned is None and self.lr_scaling not in (None, "none"):
            problem = f"is missing: lr_scaling={self.lr_scaling} from which batch?"
            raise ConfigError("reference.global_batch_size", problem)

    @classmethod
    def read(cls, cfg: Any, path: str) -> Self:
        """Build it from a mapping; errors name the full path of a key."""
        mapping = plain_mapping(cfg, path)
        if "reference" in mapping:
            mapping["reference"] = ReferenceSettings.read(mapping["reference"] or {}, join(path, "reference"))
        return super().read(mapping, path)
