"""How the global batch of a run is split."""

from lightning_novograd.errors import ConfigError
from lightning_novograd.large_batch.plan import BatchPlan, solve_batch_plan
from lightning_novograd.recipes.common.engines.devices import count_devices
from lightning_novograd.recipes.common.settings.run import CommonSettings


def plan_batches(settings: CommonSettings, per_device_batch_size: int) -> BatchPlan:
    """Split the global batch over devices, nodes and accumulation, exactly.

    Args:
        settings: whose ``large_batch`` and ``trainer`` blocks count.
        per_device_batch_size: examples of one micro-batch, unless ``large_batch.max_per_device_batch_size`` is given.

    Raises:
        ConfigError: it does not divide (the message names sizes that do), it is a list of stages, or it or the
            accumulation is given twice.
    """
    accumulate = settings.trainer.get("accumulate_grad_batches", 1)
    devices, nodes = count_devices(settings.trainer), settings.trainer.get("num_nodes", 1)
    large_batch = settings.large_batch
    size = large_batch.global_batch_size
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
