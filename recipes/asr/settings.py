"""The run's own part of the config: everything in ``conf/asr.yaml`` that is not optim, model or data."""

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.accelerators import AcceleratorRegistry
from omegaconf import DictConfig, OmegaConf

from lightning_novograd.batch_plan import BatchPlan, solve_batch_plan
from lightning_novograd.errors import ConfigError, choices

_TRAINER_ARGUMENTS = frozenset(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}
# arguments of the Trainer that the recipe sets itself, and where the user says them instead
_TRAINER_RESERVED = {
    "logger": "the logger group",
    "callbacks": "the checkpoint block",
    "default_root_dir": "hydra.run.dir",
    "use_distributed_sampler": "nothing: the data module's sampler knows its rank",
}


@dataclass(frozen=True)
class CheckpointSettings:
    """Which checkpoints are kept, and which one the test set sees."""

    save_top_k: int = 2
    test: Literal["last", "best"] = "last"


@dataclass(frozen=True)
class RunSettings:
    """A checked ``conf/asr.yaml``, plain Python throughout."""

    model: dict[str, Any]
    data: dict[str, Any]
    optim: dict[str, Any]
    trainer: dict[str, Any]
    logger: dict[str, dict[str, Any]] = field(default_factory=dict)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    seed: int = 1
    global_batch_size: int | None = None
    resume_from: str | None = None
    num_samples: int = 3

    def __post_init__(self) -> None:
        check_keys(self.trainer, _TRAINER_ARGUMENTS, "trainer")
        for key in sorted(set(self.trainer) & set(_TRAINER_RESERVED)):
            raise ConfigError(f"trainer.{key}", f"is set by the recipe; use {_TRAINER_RESERVED[key]}")
        check_keys(self.logger, LOGGERS, "logger")
        if self.checkpoint.test not in ("last", "best"):
            raise ConfigError("checkpoint.test", f"must be 'last' or 'best', not {self.checkpoint.test!r}")
        if self.checkpoint.test == "best" and self.checkpoint.save_top_k == 0:
            raise ConfigError("checkpoint.save_top_k", "must not be 0 where checkpoint.test is 'best'")

    def batch_plan(self) -> BatchPlan:
        """Split the global batch over devices, nodes and accumulation, exactly.

        Raises:
            ConfigError: it does not divide; the message names sizes that work.
        """
        per_device, accumulate = self.data["batch_size"], self.trainer.get("accumulate_grad_batches", 1)
        devices, nodes = num_devices(self.trainer), self.trainer.get("num_nodes", 1)
        if self.global_batch_size is None:
            size = per_device * devices * nodes * accumulate
            return BatchPlan(size, per_device, devices, nodes, accumulate)
        if accumulate != 1:
            raise ConfigError(
                "trainer.accumulate_grad_batches",
                f"is {accumulate}, but large_batch.global_batch_size={self.global_batch_size} already decides the "
                "accumulation; set one of them",
            )
        return solve_batch_plan(
            self.global_batch_size, devices=devices, num_nodes=nodes, per_device_batch_size=per_device
        )


LOGGERS = {"csv": "CSVLogger", "tensorboard": "TensorBoardLogger", "wandb": "WandbLogger"}


def parse_settings(cfg: DictConfig | Mapping[str, Any]) -> RunSettings:
    """Check the top level of the config and make it plain Python.

    Raises:
        ConfigError: a key is unknown or missing, or a block is no mapping; interpolations that do not resolve.
    """
    plain = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else dict(cfg)
    assert isinstance(plain, dict)
    large_batch = plain.pop("large_batch", None) or {}
    allowed = {f.name for f in dataclasses.fields(RunSettings)} - {"global_batch_size"} | {"large_batch"}
    check_keys(plain, allowed, "")
    check_keys(large_batch, {"global_batch_size"}, "large_batch")
    for block in ("model", "data", "optim", "trainer"):
        if not isinstance(plain.get(block), dict):
            raise ConfigError(block, f"must be a mapping, not {plain.get(block)!r}")
    checkpoint = plain.pop("checkpoint", None) or {}
    check_keys(checkpoint, {f.name for f in dataclasses.fields(CheckpointSettings)}, "checkpoint")
    return RunSettings(
        **{**plain, "logger": plain.get("logger") or {}},
        checkpoint=CheckpointSettings(**checkpoint),
        global_batch_size=large_batch.get("global_batch_size"),
    )


def num_devices(trainer: Mapping[str, Any]) -> int:
    """Devices per node that ``trainer.devices`` means, as the Trainer counts them."""
    devices = trainer.get("devices", "auto")
    if isinstance(devices, int) and devices > 0:
        return devices
    if isinstance(devices, (list, tuple)):
        return len(devices)
    accelerator = trainer.get("accelerator", "auto")
    if accelerator not in AcceleratorRegistry:
        raise ConfigError("trainer.devices", f"{devices!r} needs a trainer.accelerator; give the number of devices")
    count = AcceleratorRegistry.get(accelerator).auto_device_count()
    return count


def check_keys(mapping: Mapping[str, Any], allowed: Any, path: str) -> None:
    """Refuse a key that is not in `allowed`, with the nearest match."""
    for key in mapping:
        if key not in allowed:
            raise ConfigError(f"{path}.{key}" if path else str(key), f"unknown key {key!r}{choices(key, allowed)}")
