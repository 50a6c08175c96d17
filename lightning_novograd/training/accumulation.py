"""`optim.large_batch`: the callback that accumulates as the block says."""

from typing import Any

from lightning_novograd.config.schema import OptimConfig
from lightning_novograd.errors import ConfigError


def new_batch_ramp(config: OptimConfig, module: Any) -> Any:
    """The callback that accumulates for the global batch of `module`'s optim block, on the devices of its Trainer.

    Raises:
        ConfigError: there is no exact split on these devices, or the Trainer has such a callback already.

    """
    from lightning_novograd.training.callbacks.batch_ramp import BatchRampScheduler  # imports Lightning

    trainer, wanted = module.trainer, config.large_batch
    assert wanted is not None
    others = [callback for callback in trainer.callbacks if isinstance(callback, BatchRampScheduler)]
    if any(callback.path != wanted.path for callback in others):  # our own is there when the Trainer fits again
        raise ConfigError(wanted.path, "the Trainer has a BatchRampScheduler, which says it too; give one of both")
    return BatchRampScheduler(wanted.ramp(trainer.num_devices, trainer.num_nodes), wanted.lr_scaling, path=wanted.path)
