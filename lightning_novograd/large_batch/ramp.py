"""A global batch that grows in the course of a run: a plan for each stage, exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

from lightning_novograd.errors import ConfigError
from lightning_novograd.large_batch.plan import PATH, BatchPlan, LrRule, scale_lr, solve_batch_plan


@dataclass(frozen=True)
class BatchRamp:
    """The plans of a run, each from an optimizer step on; only their accumulation differs.

    Args:
        begins: optimizer steps (from 0) at which the stages begin, ascending, the first 0.
        plans: one for each stage, with the same `per_device_batch_size`, `devices` and `num_nodes`.

    """

    begins: tuple[int, ...]
    plans: tuple[BatchPlan, ...]

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.plans[0].world_size

    def stage_at(self, step: int) -> int:
        """Index of the stage that optimizer step number `step` (from 0) belongs to."""
        return sum(begin <= step for begin in self.begins) - 1

    def plan_at(self, step: int) -> BatchPlan:
        """The plan of optimizer step number `step`."""
        return self.plans[self.stage_at(step)]

    def lr_factor(self, step: int, rule: LrRule = "linear") -> float:
        """What `scale_lr` makes of an LR of 1 that was tuned for the first stage's global batch."""
        return scale_lr(1.0, self.plan_at(step).global_batch_size, self.plans[0].global_batch_size, rule)

    def steps_of(self, batches: int, first_step: int = 0) -> int:
        """Optimizer steps that `batches` forward passes of one device make; the last one may have fewer than it needs.

        Args:
            batches: of one epoch, at whose end whatever has accumulated is a step.
            first_step: the optimizer step that begins with the first of them.

        Example:
            >>> ramp = solve_batch_ramp([[0, 8], [3, 32]], devices=1, per_device_batch_size=8)
            >>> ramp.steps_of(10)  # 1 + 1 + 1 + 4 + 3
            5

        """
        step = first_step
        while batches > 0:
            stage = self.stage_at(step)
            accumulation = self.plans[stage].accumulate_grad_batches
            steps = -(-batches // accumulation)
            if stage + 1 < len(self.begins):
                steps = min(steps, self.begins[stage + 1] - step)
            batches -= steps * accumulation
            step += steps
        return step - first_step

    def __str__(self) -> str:
        stages = zip(self.begins, self.plans, strict=True)
        return "; ".join(f"from optimizer step {begin}: {plan}" for begin, plan in stages)


def solve_batch_ramp(
    stages: Sequence[Sequence[int]] | int,
    *,
    devices: int,
    num_nodes: int = 1,
    per_device_batch_size: int | None = None,
    max_per_device_batch_size: int | None = None,
) -> BatchRamp:
    """Split each stage's global batch exactly, with the same per-device batch in all.

    Args:
        stages: pairs `[optimizer step, global batch]`; the first begins at step 0, steps ascend. A number is the
            global batch of all steps.
        devices: as for `solve_batch_plan`, and so are the others.
        num_nodes: >= 1.
        per_device_batch_size: fixed batch of one device.
        max_per_device_batch_size: the largest batch up to it that divides every stage is taken.

    Raises:
        ConfigError: not a list of such pairs, or a stage that has no exact split. Its `path` is that of the stage,
            `large_batch.global_batch_size[1]`.

    Example:
        >>> print(solve_batch_ramp([[0, 256], [2000, 1024]], devices=8, per_device_batch_size=32))  # doctest: +ELLIPSIS
        from optimizer step 0: global batch 256 = ... x 1 accumulated; from optimizer step 2000: ... x 4 accumulated

    """
    sizes = {"devices": devices, "num_nodes": num_nodes}
    given = {"per_device_batch_size": per_device_batch_size, "max_per_device_batch_size": max_per_device_batch_size}
    if isinstance(stages, int):
        return BatchRamp((0,), (solve_batch_plan(stages, devices=devices, num_nodes=num_nodes, **given),))
    _check_stages(stages)
    plans = [_solve(index, size, **sizes, **given) for index, (_, size) in enumerate(stages)]
    if per_device_batch_size is None:
        shared = gcd(*(plan.global_batch_size // plan.world_size for plan in plans))
        limit = min(plan.per_device_batch_size for plan in plans)
        largest = next(size for size in range(min(limit, shared), 0, -1) if shared % size == 0)
        plans = [_solve(index, size, **sizes, per_device_batch_size=largest) for index, (_, size) in enumerate(stages)]
    return BatchRamp(tuple(step for step, _ in stages), tuple(plans))


def _check_stages(stages: Any) -> None:
    expected = "a list of pairs [optimizer step, global batch]"
    if not isinstance(stages, Sequence) or isinstance(stages, str) or not stages:
        raise ConfigError(PATH, f"expected {expected}, got {stages!r}")
    before = -1
    for index, stage in enumerate(stages):
        path = f"{PATH}[{index}]"
        if not isinstance(stage, Sequence) or isinstance(stage, str) or len(stage) != 2:
            raise ConfigError(path, f"{stage!r} is no pair; expected {expected}")
        step = stage[0]
        if type(step) is not int or step < 0:
            raise ConfigError(path, f"a stage begins at an optimizer step, an integer of at least 0, not at {step!r}")
        if index == 0 and step != 0:
            raise ConfigError(path, f"the first stage begins at optimizer step 0, not at {step}")
        if step <= before:
            raise ConfigError(path, f"begins at optimizer step {step}, not after the stage before it, at {before}")
        before = step


def _solve(index: int, size: int, **sizes: Any) -> BatchPlan:
    try:
        return solve_batch_plan(size, **sizes)
    except ConfigError as error:
        path = f"{PATH}[{index}]" if error.path == PATH else error.path
        raise ConfigError(path, error.problem) from None
