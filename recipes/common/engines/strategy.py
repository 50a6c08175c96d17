"""The strategy that Lightning's Trainer is given."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from lightning.pytorch.plugins import LayerSync
from lightning.pytorch.strategies import Strategy

from lightning_novograd.errors import ConfigError
from lightning_novograd.log import rank_zero_logger
from lightning_novograd.recipes.common.engines.batch_norm import SyncBatchNormOnCPU
from lightning_novograd.recipes.common.engines.ddp import Communication, HookedDDPStrategy
from lightning_novograd.recipes.common.engines.devices import accelerator_of
from lightning_novograd.recipes.common.engines.sharding import FSDP2, FSDP2Strategy
from lightning_novograd.recipes.common.settings.distributed import DistributedSettings

log = rank_zero_logger(__name__)

_PATH = "distributed"
_SCALED = ("16-mixed", 16, "16")  # precisions with a GradScaler
_OF_FSDP2 = (None, "32-true", "bf16-mixed", "bf16-true", "16-true", 32, "32", "bf16")


def build_strategy(settings: DistributedSettings, trainer: Mapping[str, Any], world_size: int) -> Strategy | str:
    """What ``trainer.strategy`` means: DDP and FSDP2 with the ``distributed`` block, another as Lightning knows it.

    Args:
        settings: the block.
        trainer: arguments of the Trainer.
        world_size: processes of the run, on all nodes.

    Raises:
        ConfigError: the block has keys that the strategy does not know, or that do not go with the precision.
    """
    name = trainer.get("strategy", "auto")
    if name == "auto" and world_size > 1:
        name = "ddp"  # as Lightning has it
    timeout = timedelta(seconds=settings.process_group_timeout)
    if name == "ddp":
        _check_precision(settings, trainer.get("precision"))
        options: dict[str, Any] = {
            "gradient_as_bucket_view": settings.gradient_as_bucket_view,
            "static_graph": settings.static_graph,
        }
        if settings.bucket_cap_mb is not None:
            options["bucket_cap_mb"] = settings.bucket_cap_mb
        return HookedDDPStrategy(Communication.of(settings), timeout=timeout, **options)
    if name == "auto":
        if given := settings.of_ddp():
            log.warning("one process trains: %s.%s has nothing to do", _PATH, f", {_PATH}.".join(given))
        return name
    if given := settings.of_ddp():
        raise ConfigError(f"{_PATH}.{given[0]}", f"is of DDP, and trainer.strategy is {name!r}; leave it out")
    if name == FSDP2:
        _check_sharded(trainer)
        return FSDP2Strategy(world_size, timeout)
    if settings != DistributedSettings():
        problem = f"is of trainer.strategy ddp or {FSDP2}, not of {name!r}; leave it out"
        raise ConfigError(f"{_PATH}.process_group_timeout", problem)
    return name


def layer_sync(trainer: Mapping[str, Any], world_size: int) -> LayerSync | None:
    """The plugin that takes the place of ``trainer.sync_batchnorm`` where torch's layers do not run.

    Args:
        trainer: arguments of the Trainer.
        world_size: processes of the run, on all nodes.

    Returns:
        None where Lightning's own is right, or nothing is to be shared.
    """
    on_cpu = accelerator_of(trainer) == "cpu" and trainer.get("strategy") != FSDP2
    return SyncBatchNormOnCPU() if trainer.get("sync_batchnorm") and on_cpu and world_size > 1 else None


def _check_precision(settings: DistributedSettings, precision: Any) -> None:
    if settings.comm_hook == "powersgd" and precision in _SCALED:
        problem = f"keeps errors of gradients, whose scale changes under precision={precision}; use bf16-mixed"
        raise ConfigError(f"{_PATH}.comm_hook", f"powersgd {problem}")


def _check_sharded(trainer: Mapping[str, Any]) -> None:
    if trainer.get("sync_batchnorm"):
        raise ConfigError("trainer.sync_batchnorm", f"is of DDP; Lightning's strategy for {FSDP2} does not know it")
    precision = trainer.get("precision")
    if precision not in _OF_FSDP2:
        names = ", ".join(name for name in _OF_FSDP2 if isinstance(name, str) and "-" in name)
        raise ConfigError("trainer.precision", f"{precision!r} is not one that Lightning has for {FSDP2}: {names}")
