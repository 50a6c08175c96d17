"""The run's own part of the config: everything in ``conf/asr.yaml`` that is not optim, model or data."""

import inspect
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Self

import lightning.pytorch as pl
from lightning.pytorch.accelerators import AcceleratorRegistry

from lightning_novograd.errors import ConfigError, choices
from lightning_novograd.large_batch.plan import BatchPlan, solve_batch_plan
from lightning_novograd.recipes.asr.section import Section, join, key, plain_mapping
from lightning_novograd.recipes.asr.training.batches.settings import LargeBatchSettings
from lightning_novograd.recipes.asr.training.engines.options import DistributedSettings

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
        save_top_k: checkpoints kept by dev WER; -1 keeps all. That of the last epoch is always kept.
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
class EarlyStoppingSettings(Section):
    """The ``early_stopping`` block.

    Args:
        patience: validations without an improvement after which the training ends; None: it never ends early.
        min_delta: what counts as an improvement, as a fraction (0.001: 0.1 % WER); a smaller one does not.
        monitor: what has to fall. The training also ends where it is no number.
    """

    patience: int | None = key(None, low=1)
    min_delta: float = key(0.0, low=0.0)
    monitor: str = key("dev_wer", allowed=("dev_wer", "dev_cer", "dev_loss"))


@dataclass(frozen=True, kw_only=True)
class PublishedSettings(Section):
    """The ``published`` block: what a recipe reached elsewhere, to be shown beside what the run reaches.

    Args:
        source: who published it.
        wer: word error rates, 0 to 1, by the name that ``data.dev`` and ``data.test`` have for the set.
    """

    source: str = key()
    wer: dict = key()

    def check(self) -> None:
        """Error rates are fractions, as in results.json."""
        for name, wer in self.wer.items():
            if isinstance(wer, bool) or not isinstance(wer, int | float) or not 0 <= wer <= 1:
                raise ConfigError(f"wer.{name}", f"must be a fraction from 0 to 1, not {wer!r}")


@dataclass(frozen=True, kw_only=True)
class NonFiniteSettings(Section):
    """The ``nonfinite`` block, see :class:`NonFiniteGuard`.

    Args:
        action: ``"raise"`` ends the run at a loss, gradient or sample that is not finite; ``"skip"`` leaves out the
            optimizer step, and of an evaluation's mean loss the utterance.
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
class RunSettings(Section):
    """A ``conf/asr.yaml``, checked at its top level; the blocks in it are read by the parts they configure.

    Args:
        model: see :meth:`JasperCTC.from_config`.
        data: see :class:`DataConfig`.
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
        init_from: run folder, checkpoint or ``.nemo`` archive whose weights a new run begins with.
        freeze: parameters that are not trained, see :func:`freeze`.
        early_stopping: see :class:`EarlyStoppingSettings`.
        num_samples: transcripts shown after each validation.
        published: see :class:`PublishedSettings`; None: nothing to compare with.
        layer_monitor: optimizer steps between records of :class:`LayerMonitor`; None: none.
    """

    measure: ClassVar[str] = "dev WER"  # what the best checkpoint is chosen by

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
    init_from: str | None = key(None)
    freeze: list | None = key(None)
    early_stopping: EarlyStoppingSettings = key(EarlyStoppingSettings())
    num_samples: int = key(3, low=0)
    published: PublishedSettings | None = key(None)
    layer_monitor: int | None = key(None, low=1)

    def check(self) -> None:
        """Every block has known keys only, and those that the recipe sets are left to it."""
        check_keys(self.trainer, _TRAINER_ARGUMENTS - set(_TRAINER_RESERVED), "trainer", _TRAINER_RESERVED)
        check_keys(self.logger, LOGGERS, "logger")
        if self.init_from is not None and self.resume_from is not None:
            raise ConfigError("init_from", "and resume_from exclude each other: a run that goes on has its weights")
        for pattern in self.freeze or ():
            if not isinstance(pattern, str):
                raise ConfigError("freeze", f"must be a list of globs over parameter names, not {self.freeze!r}")
        if self.early_stopping.patience is not None and self.trainer.get("limit_val_batches") == 0:
            raise ConfigError("early_stopping.patience", "has nothing to watch with trainer.limit_val_batches=0")
        if self.checkpoint.test == "best" and (reason := self._why_no_best()):
            raise ConfigError("checkpoint.test", f"is 'best', but {reason}; take 'last'")

    @property
    def validates(self) -> bool:
        """Whether there are dev numbers."""
        limit = self.trainer.get("limit_val_batches")
        return limit is None or limit != 0

    def _why_no_best(self) -> str | None:
        """Why no checkpoint can be chosen by dev WER, if none can."""
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
        sections: dict[str, type[Section]] = {
            "checkpoint": CheckpointSettings,
            "large_batch": LargeBatchSettings,
            "distributed": DistributedSettings,
            "early_stopping": EarlyStoppingSettings,
            "published": PublishedSettings,
            "nonfinite": NonFiniteSettings,
            "watchdog": WatchdogSettings,
            "console": ConsoleSettings,
        }
        for name, section in sections.items():
            if name in mapping and (name, mapping[name]) != ("published", None):
                mapping[name] = section.read(mapping[name], join(path, name))
        return super().read(mapping, path)


def published_results(settings: RunSettings) -> dict[str, Any]:
    """What the ``published`` block says of the sets that the run measures, for results.json; empty without one."""
    published = settings.published
    if published is None:
        return {}
    sets = {f"{split}_wer": settings.data.get(split) for split in ("dev", "test")}
    known = {name: published.wer[part] for name, part in sets.items() if part in published.wer}
    return {"published": {"source": published.source, **known, "wer": published.wer}}


def check_keys(
    mapping: Mapping[str, Any], allowed: Iterable[str], path: str, reserved: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Refuse unknown keys, with the nearest match, and reserved ones, with what to use instead."""
    for name in mapping:
        if name in reserved:
            raise ConfigError(join(path, name), f"is set by the recipe; {reserved[name]}")
        if name not in allowed:
            raise ConfigError(join(path, name), f"unknown key{choices(name, allowed)}")


def plan_batches(settings: RunSettings, per_device_batch_size: int) -> BatchPlan:
    """Split the global batch over devices, nodes and accumulation, exactly.

    Args:
        settings: whose ``large_batch`` and ``trainer`` blocks count.
        per_device_batch_size: utterances of one micro-batch, unless ``large_batch.max_per_device_batch_size`` is given.

    Raises:
        ConfigError: it does not divide (the message names sizes that do), it is a list of stages, or it or the
            accumulation is given twice.
    """
    accumulate = settings.trainer.get("accumulate_grad_batches", 1)
    devices, nodes = count_devices(settings.trainer), settings.trainer.get("num_nodes", 1)
    large_batch = settings.large_batch
    size = large_batch.global_batch_size
    if settings.data.get("batch_seconds") is not None:
        _check_seconds(settings)
    if isinstance(size, list):
        # the number of batches in an epoch would change, and Lightning asks for it once
        problem = "the recipe's epochs consist of whole global batches, equally many in each, so its batch cannot grow"
        raise ConfigError(
            "large_batch.global_batch_size",
            f"{problem}; give one number, and for stages use BatchRampScheduler with a loader of your own "
            "(docs/batch_ramp.md)",
        )
    if size is None:
        size = per_device_batch_size * devices * nodes * accumulate
    elif accumulate != 1:
        problem = (
            f"is {accumulate}, but large_batch.global_batch_size={size} decides the accumulation; give one of them"
        )
        raise ConfigError("trainer.accumulate_grad_batches", problem)
    if (most := large_batch.max_per_device_batch_size) is not None:
        return solve_batch_plan(size, devices=devices, num_nodes=nodes, max_per_device_batch_size=most)
    return solve_batch_plan(size, devices=devices, num_nodes=nodes, per_device_batch_size=per_device_batch_size)


def _check_seconds(settings: RunSettings) -> None:
    """Refuse what counts utterances where batches are by seconds."""
    large_batch = settings.large_batch
    problem = "utterances, but data.batch_seconds counts seconds; give one of them"
    if (size := large_batch.global_batch_size) is not None:
        raise ConfigError("large_batch.global_batch_size", f"is {size} {problem}")
    if (size := large_batch.reference.global_batch_size) is not None:
        raise ConfigError("large_batch.reference.global_batch_size", f"is {size} {problem}")
    if large_batch.last == "keep":
        problem = "is of utterances that do not fill a global batch, and batches of data.batch_seconds leave none over"
        raise ConfigError("large_batch.last", f"'keep' {problem}; take drop")


def accelerator_of(trainer: Mapping[str, Any]) -> str:
    """Lightning's name of what ``trainer.accelerator`` means on this machine: ``"cpu"``, ``"cuda"``, ..."""
    name = trainer.get("accelerator", "auto")
    if name == "auto":
        name = "cuda" if AcceleratorRegistry.get("cuda").is_available() else "cpu"
    return "cuda" if name == "gpu" else name


def count_devices(trainer: Mapping[str, Any]) -> int:
    """Devices per node that ``trainer.devices`` means, counted as the Trainer does.

    Raises:
        ConfigError: there is no such device on this machine.
    """
    name, devices = accelerator_of(trainer), trainer.get("devices", "auto")
    if isinstance(devices, list):
        return len(devices)
    if isinstance(devices, int) and devices > 0:
        return devices
    if devices not in ("auto", -1, "-1") or name not in AcceleratorRegistry:
        raise ConfigError("trainer.devices", f"must be a number of devices, a list of them or 'auto', not {devices!r}")
    accelerator = AcceleratorRegistry.get(name)
    count = accelerator.auto_device_count() if accelerator.is_available() else 0
    if count < 1:
        problem = f"{devices!r}: this machine has no device for accelerator={name}"
        raise ConfigError("trainer.devices", f"{problem}; a number plans for another machine")
    return count
