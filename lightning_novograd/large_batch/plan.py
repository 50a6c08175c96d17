"""A global batch as per-device batch x devices x nodes x accumulation, exactly; and LR scaling rules."""

from dataclasses import dataclass
from typing import Literal, get_args

from lightning_novograd.errors import ConfigError, choices

PATH = "large_batch.global_batch_size"
LrRule = Literal["linear", "sqrt", "none"]


@dataclass(frozen=True)
class BatchPlan:
    """How one optimizer step's batch is spread.

    Args:
        global_batch_size: samples per optimizer step; the product of the other four.
        per_device_batch_size: samples of one forward pass on one device.
        devices: per node.
        num_nodes: machines.
        accumulate_grad_batches: forward passes per optimizer step, for `Trainer(accumulate_grad_batches=...)`.

    """

    global_batch_size: int
    per_device_batch_size: int
    devices: int
    num_nodes: int
    accumulate_grad_batches: int

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.devices * self.num_nodes

    def __str__(self) -> str:
        return (
            f"global batch {self.global_batch_size} = {self.per_device_batch_size} per device x {self.devices} devices "
            f"x {self.num_nodes} nodes x {self.accumulate_grad_batches} accumulated"
        )


def solve_batch_plan(
    global_batch_size: int,
    *,
    devices: int,
    num_nodes: int = 1,
    per_device_batch_size: int | None = None,
    max_per_device_batch_size: int | None = None,
) -> BatchPlan:
    """Split `global_batch_size` exactly; never round it.

    Args:
        global_batch_size: wanted samples per optimizer step, >= 1.
        devices: per node, >= 1.
        num_nodes: >= 1.
        per_device_batch_size: fixed batch of one device; accumulation makes up the rest.
        max_per_device_batch_size: what fits into a device's memory; the largest batch up to it that divides evenly is
            taken, so that accumulation is least. Give this or `per_device_batch_size`.

    Raises:
        ConfigError: no exact split exists; the message has the nearest global batch sizes that work. Its `path` is
            `large_batch.global_batch_size`.

    Example:
        >>> print(solve_batch_plan(8192, devices=8, num_nodes=4, max_per_device_batch_size=72))
        global batch 8192 = 64 per device x 8 devices x 4 nodes x 4 accumulated

    """
    sizes = {
        "global_batch_size": global_batch_size,
        "devices": devices,
        "num_nodes": num_nodes,
        "per_device_batch_size": per_device_batch_size,
        "max_per_device_batch_size": max_per_device_batch_size,
    }
    for name, value in sizes.items():
        optional = name.endswith("per_device_batch_size")
        if not (optional and value is None) and (type(value) is not int or value < 1):
            raise ConfigError(f"large_batch.{name}", f"expected an integer of at least 1, got {value!r}")
    if (per_device_batch_size is None) == (max_per_device_batch_size is None):
        given = "neither is given" if per_device_batch_size is None else "both are given"
        raise ConfigError(
            "large_batch.per_device_batch_size", f"give this or max_per_device_batch_size, one of the two; {given}"
        )

    world = devices * num_nodes
    unit = world * (per_device_batch_size or 1)  # what the global batch must be a multiple of
    if global_batch_size % unit:
        below, above = global_batch_size // unit * unit, (global_batch_size // unit + 1) * unit
        nearest = " and ".join(str(size) for size in (below, above) if size)
        pass_ = f"{per_device_batch_size} per device x " if per_device_batch_size else ""
        raise ConfigError(
            PATH,
            f"{global_batch_size} is not a multiple of {unit} ({pass_}{devices} devices x {num_nodes} nodes); nearest "
            f"that work: {nearest}",
        )
    per_rank = global_batch_size // world
    if per_device_batch_size is None:
        assert max_per_device_batch_size is not None
        largest = min(per_rank, max_per_device_batch_size)
        per_device_batch_size = next(size for size in range(largest, 0, -1) if per_rank % size == 0)
    return BatchPlan(global_batch_size, per_device_batch_size, devices, num_nodes, per_rank // per_device_batch_size)


def scale_lr(lr: float, global_batch_size: int, base_global_batch_size: int, rule: LrRule = "linear") -> float:
    """The LR for another global batch: `lr * k` (linear), `lr * sqrt(k)` or `lr`, with `k` the ratio of the batches.

    Args:
        lr: tuned at `base_global_batch_size`.
        global_batch_size: of the run, >= 1.
        base_global_batch_size: where `lr` was tuned, >= 1.
        rule: `"linear"` (Goyal et al., https://arxiv.org/abs/1706.02677), `"sqrt"` (Hoffer et al.,
            https://arxiv.org/abs/1705.08741) or `"none"`; NovoGrad's authors scale less than linearly.

    Raises:
        ConfigError: an unknown rule or a batch size below 1.

    Example:
        >>> scale_lr(0.02, 1024, 256), scale_lr(0.02, 1024, 256, "sqrt")
        (0.08, 0.04)

    """
    for name, size in (("global_batch_size", global_batch_size), ("base_global_batch_size", base_global_batch_size)):
        if size < 1:
            raise ConfigError(f"large_batch.{name}", f"{size} is out of range; must be at least 1")
    ratio = global_batch_size / base_global_batch_size
    powers = dict(zip(get_args(LrRule), (1.0, 0.5, 0.0), strict=True))
    if rule not in powers:
        raise ConfigError("large_batch.lr_scaling", f"unknown rule {rule!r}{choices(rule, powers)}")
    return lr * ratio ** powers[rule]
