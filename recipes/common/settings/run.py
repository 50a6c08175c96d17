"""The keys that every recipe's config has, besides what is in its model, data and optim blocks."""

import inspect
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Self

import lightning.pytorch as pl

from lightning_novograd.errors import ConfigError, choices
from lightning_novograd.recipes.common.section import Section, join, key, plain_mapping
from lightning_novograd.recipes.common.settings.distributed import DistributedSettings
from lightning_novograd.recipes.common.settings.identity import Identity
from lightning_novograd.recipes.common.settings.large_batch import LargeBatchSettings

# the name in the config -> the class in lightning.pytorch.loggers
LOGGERS = {"csv": "CSVLogger", "tensorboard": "TensorBoardLogger", "wandb": "WandbLogger"}

_TRAINER_ARGUMENTS = frozenset(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}
# arguments of the Trainer that the recipe sets itself, and where the user says it instead
_TRAINER_RESERVED = {
    "logger": "use the logger group",
    "callbacks": "use the checkpoint block",
    "default_root_dir": "use hydra.run.dir",
    "use_distributed_sampler": "the data module's sampler knows its rank",
    "gradient_clip_val": "use optim.grad_clip_norm or optim.grad_clip_value",
    "gradient_clip_algorithm": "use optim.grad_clip_norm or optim.grad_clip_value",
}


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings(Section):
    """The ``checkpoint`` block.

    Args:
        save_top_k: checkpoints kept by the dev result; -1 keeps all. That of the last epoch is always kept.
        every_n_steps: optimizer steps between checkpoints inside an epoch, of which the newest is kept; None: none.
        test: whether the test set sees the weights of the ``"last"`` or of the ``"best"`` epoch.
        average: it sees the mean of the weights of this many last or best epochs instead; None: of one.
    """

    save_top_k: int = key(2, low=-1)
    every_n_steps: int | None = key(None, low=1)
    test: str = key("last", allowed=("last", "best"))
    average: int | None = key(None, low=2)

    def check(self) -> None:
        """The best epoch must have been kept."""
        if self.test == "best" and self.save_top_k == 0:
            raise ConfigError("save_top_k", "must not be 0 where checkpoint.test is 'best'")
        if self.test == "best" and self.average is not None and 0 <= self.save_top_k < self.average:
            raise ConfigError("save_top_k", f"{self.save_top_k} keeps fewer than checkpoint.average={self.average}")


@dataclass(frozen=True, kw_only=True)
class NonFiniteSettings(Section):
    """The ``nonfinite`` block, see :class:`NonFiniteGuard`.

    Args:
        action: ``"raise"`` ends the run at a loss, gradient or sample that is not finite; ``"skip"`` leaves out the
            optimizer step, and of an evaluation's mean loss the example.
        max_consecutive: steps in a row that may be left out; 20 more where a GradScaler skips them, whatever `action`.
    """

    action: str = key("raise", allowed=("raise", "skip"))
    max_consecutive: int = key(10, low=1)


@dataclass(frozen=True, kw_only=True)
class WatchdogSettings(Section):
    """The ``watchdog`` block, see :class:`Watchdog`.

    Args:
        timeout: s without a batch of any rank, or without a sign of life of one, after which the job ends with an error
            that names it; None: only ranks that have died end it.
    """

    timeout: float | None = key(600.0, low=1.0)


@dataclass(frozen=True, kw_only=True)
class ConsoleSettings(Section):
    """The ``console`` block.

    Args:
        interval: s between two lines of progress in the log.
    """

    interval: float = key(30.0, above=0.0)


@dataclass(frozen=True, kw_only=True)
class CommonSettings(Section):
    """A config, checked at its top level; the blocks in it are read by the parts they configure.

    Args:
        model: of the recipe.
        data: of the recipe.
        optim: see ``docs/optim_block.md``.
        trainer: arguments of Lightning's ``Trainer``.
        logger: loggers by name (csv, tensorboard, wandb), with their arguments.
        checkpoint: see :class:`CheckpointSettings`.
        large_batch: see :class:`LargeBatchSettings`.
        distributed: see :class:`DistributedSettings`.
        nonfinite: see :class:`NonFiniteSettings`.
        watchdog: see :class:`WatchdogSettings`.
        console: see :class:`ConsoleSettings`.
        seed: of initialization, shuffling, dropout.
        resume: ``"auto"`` goes on from the newest whole checkpoint of the run folder, where there is one.
        resume_from: checkpoint of a run to continue; ``~`` is the home directory.
        layer_monitor: optimizer steps between records of :class:`LayerMonitor`; None: none.
    """

    measure: ClassVar[str] = "dev result"  # what the best checkpoint is chosen by
    identity: ClassVar[Identity] = Identity(
        blocks=("model", "data", "optim", "seed", "large_batch"),
        same=(
            *("data.batch_size", "data.eval_batch_size"),
            *("large_batch.global_batch_size", "large_batch.max_per_device_batch_size"),
        ),
        silent=("resume", "resume_from", "console", "logger"),
    )
    # blocks by name
    sections: ClassVar[Mapping[str, type[Section]]] = MappingProxyType(
        {
            "checkpoint": CheckpointSettings,
            "large_batch": LargeBatchSettings,
            "distributed": DistributedSettings,
            "nonfinite": NonFiniteSettings,
            "watchdog": WatchdogSettings,
            "console": ConsoleSettings,
        }
    )

    model: dict = key()
    data: dict = key()
    optim: dict = key()
    trainer: dict = key()
    logger: dict = key()
    checkpoint: CheckpointSettings = key()
    large_batch: LargeBatchSettings = key()
    distributed: DistributedSettings = key(DistributedSettings())
    nonfinite: NonFiniteSettings = key(NonFiniteSettings())
    watchdog: WatchdogSettings = key(WatchdogSettings())
    console: ConsoleSettings = key(ConsoleSettings())
    seed: int = key(1, low=0)
    resume: str | None = key(None, allowed=("auto", None))
    resume_from: str | None = key(None)
    layer_monitor: int | None = key(None, low=1)

    def check(self) -> None:
        """Every block has known keys only, and those that the recipe sets are left to it."""
        check_keys(self.trainer, _TRAINER_ARGUMENTS - set(_TRAINER_RESERVED), "trainer", _TRAINER_RESERVED)
        check_keys(self.logger, LOGGERS, "logger")
        if self.checkpoint.test == "best" and (reason := self._why_no_best()):
            raise ConfigError("checkpoint.test", f"is 'best', but {reason}; take 'last'")

    @property
    def validates(self) -> bool:
        """Whether there are dev numbers."""
        limit = self.trainer.get("limit_val_batches")
        return limit is None or limit != 0

    def _why_no_best(self) -> str | None:
        """Why no checkpoint can be chosen by the dev result, if none can."""
        every, epochs = self.trainer.get("check_val_every_n_epoch"), self.trainer.get("max_epochs")
        if not self.validates:
            return f"with trainer.limit_val_batches=0 there is no {self.measure} to choose by"
        if isinstance(every, int) and isinstance(epochs, int) and 0 < epochs < every:
            return f"with trainer.check_val_every_n_epoch={every} the {epochs} epochs end without a {self.measure}"
        if self.trainer.get("fast_dev_run"):
            return "trainer.fast_dev_run keeps no checkpoints"
        return None

    @classmethod
    def read(cls, cfg: Any, path: str) -> Self:
        """Build it from the composed config; errors in its sections have the full key path."""
        mapping = plain_mapping(cfg, path)
        if isinstance(mapping.get("resume_from"), str):  # not pathlib's expanduser, which raises for ~name of no user
            mapping["resume_from"] = os.path.expanduser(mapping["resume_from"])
        for name, section in cls.sections.items():
            if name in mapping:
                mapping[name] = section.read(mapping[name], join(path, name))
        return super().read(mapping, path)


def check_keys(
    mapping: Mapping[str, Any], allowed: Iterable[str], path: str, reserved: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Refuse unknown keys, with the nearest match, and reserved ones, with what to use instead."""
    for name in mapping:
        if name in reserved:
            raise ConfigError(join(path, name), f"is set by the recipe; {reserved[name]}")
        if name not in allowed:
            raise ConfigError(join(path, name), f"unknown key{choices(name, allowed)}")
