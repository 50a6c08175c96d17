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
    if any(isinstance(callback, BatchRampScheduler) for callback in trainer.callbacks):
        raise ConfigError(wanted.path, "the Trainer has a BatchRampScheduler, which says it too; give one of both")
    ramp = wanted.ramp(trainer.num_devices, trainer.num_nodes)
    callback = BatchRampScheduler(ramp, wanted.lr_scaling, path=wanted.path)
    callback.of_block = True
    return callback


def end_batch_ramp(trainer: Any) -> None:
    """Take out the callbacks that blocks of earlier fits of the trainer have put in, and their accumulation."""
    kept = [callback for callback in trainer.callbacks if not getattr(callback, "of_block", False)]
    if len(kept) < len(trainer.callbacks):
        trainer.callbacks, trainer.accumulate_grad_batches = kept, 1
