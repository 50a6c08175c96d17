"""A global batch that grows at optimizer steps, under Lightning's automatic optimization."""

from typing import Any, Literal

import lightning.pytorch as pl
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_novograd.errors import ConfigError
from lightning_novograd.large_batch import BatchRamp
from lightning_novograd.log import rank_zero_logger
from lightning_novograd.lr_scheduler.base import assign

log = rank_zero_logger(__name__)


class Accumulation(int):
    """`trainer.accumulate_grad_batches` for a step that begins anywhere in an epoch.

    Lightning steps where the number of batches in the epoch is a multiple of it, and zeroes gradients likewise. That is
    right only as long as all steps of an epoch have as many batches; a remainder counted from the step's first batch
    is right always. As a divisor of the loss it is a number as any other.
    """

    first_batch: int

    def __new__(cls, batches: int, first_batch: int) -> "Accumulation":
        """Of `batches` batches, the first of which has index `first_batch` in its epoch."""
        self = super().__new__(cls, batches)
        self.first_batch = first_batch
        return self

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]  # that of int has one number
        return int(self), self.first_batch

    def __rmod__(self, other: int) -> int:
        return (other - self.first_batch) % int(self)


class BatchRampScheduler(pl.Callback):
    """Change the accumulation at optimizer steps, as `ramp` says; Lightning's own scheduler does so at epochs.

    Each optimizer step has the global batch of its stage, wherever in an epoch the stage begins; at an epoch's end
    Lightning makes a step of whatever has accumulated, as it always does (a loader that deals whole global batches
    leaves nothing). That step's loss is the mean over its batches, where Lightning would divide by the accumulation of
    a whole one; its LR is that of the stage. Schedules of an optim block are as long as the run with this
    accumulation. A resumed run goes on in the stage of its step.

    With an LR rule the optimizer sees the schedule's LR times `ramp.lr_factor(step)`. It is multiplied in for the
    duration of `optimizer.step` and taken out again: schedules, closed forms or not, and checkpoints never have it, so
    nothing is multiplied twice, and a run may resume with another ramp. `LearningRateMonitor` shows the schedule's LR;
    the factor is logged as `lr_factor`, the batch as `global_batch_size`.

    Args:
        ramp: from `solve_batch_ramp`, for as many processes as the Trainer has.
        lr_scaling: `"linear"` or `"sqrt"` in the ratio to the first stage's batch, or `"none"`.
        path: where the config has it, for errors.

    Raises:
        ConfigError: in `fit`: another number of processes, an accumulation of the Trainer's own, manual optimization, a
            loader with another batch than the ramp's per-device batch.

    Example:
        >>> from lightning_novograd.large_batch import solve_batch_ramp
        >>> ramp = solve_batch_ramp([[0, 256], [2000, 1024]], devices=1, per_device_batch_size=64)
        >>> trainer = pl.Trainer(callbacks=[BatchRampScheduler(ramp, lr_scaling="sqrt")], logger=False)

    """

    of_block = False  # whether an optim block has put it in, for one fit

    def __init__(
        self, ramp: BatchRamp, lr_scaling: Literal["linear", "sqrt", "none"] = "none", path: str = "large_batch"
    ) -> None:
        ramp.lr_factor(0, lr_scaling)  # refuses an unknown rule
        self.ramp, self.lr_scaling, self.path = ramp, lr_scaling, path
        self._step, self._first_batch = -1, 0
        self._handles: list[RemovableHandle] = []
        self._unscaled: tuple[Optimizer, list[Any]] | None = None  # in a step: the optimizer and its schedule's LRs

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Lightning's hook: see whether the Trainer and the ramp go together."""
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise ConfigError(self.path, "a batch ramp accumulates, which manual optimization does by itself")
        given = trainer.accumulate_grad_batches
        if given != 1 and not isinstance(given, Accumulation):
            problem = f"is {given}, but the batch ramp decides the accumulation; give one of them"
            raise ConfigError("trainer.accumulate_grad_batches", problem)
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by the Trainer's connector
        if any(hasattr(callback, "get_accumulate_grad_batches") for callback in callbacks):
            raise ConfigError("trainer.callbacks", "GradientAccumulationScheduler and a batch ramp; give one of them")
        if trainer.strategy.handles_gradient_accumulation:
            name = type(trainer.strategy).__name__
            raise ConfigError("trainer.strategy", f"{name} accumulates by itself and cannot change that in a run")
        if trainer.world_size != self.ramp.world_size:
            problem = f"the batch ramp is for {self.ramp.world_size} processes, the Trainer has {trainer.world_size}"
            raise ConfigError(f"{self.path}.global_batch_size", problem)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with what the first step, or that of the checkpoint, needs."""
        expected = self.ramp.plans[0].per_device_batch_size
        dealt = getattr(trainer.train_dataloader, "batch_size", None)  # None: a batch sampler of the user's own
        if dealt not in (None, expected):
            problem = f"{expected}, but the loader deals batches of {dealt}; both must be the same"
            raise ConfigError(f"{self.path}.per_device_batch_size", problem)
        self._set(trainer)
        if self.lr_scaling != "none":
            for optimizer in trainer.optimizers:
                self._handles.append(optimizer.register_step_pre_hook(self._scale))
                self._handles.append(optimizer.register_step_post_hook(self._unscale))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Lightning decides by the accumulation until the batch is over: it changes before one alone."""
        if batch_idx != 0 and trainer.global_step == self._step:
            return
        stage = self.ramp.stage_at(trainer.global_step)
        if self._step < 0 or stage != self.ramp.stage_at(self._step):
            begin, plan = self.ramp.begins[stage], self.ramp.plans[stage]
            stage_of = f", in the stage from {begin} on" if len(self.ramp.plans) > 1 else ""
            log.info("At optimizer step %d%s: %s", trainer.global_step, stage_of, plan)
        self._step, self._first_batch = trainer.global_step, batch_idx
        self._set(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what the step had."""
        if trainer.global_step != self._step:
            plan = self.ramp.plan_at(self._step)
            size = plan.per_device_batch_size * plan.world_size * int(trainer.accumulate_grad_batches)
            pl_module.log("global_batch_size", float(size), batch_size=1)
            if self.lr_scaling != "none":
                pl_module.log("lr_factor", self.ramp.lr_factor(self._step, self.lr_scaling), batch_size=1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the optimizers alone."""
        self._let_go()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """The same where a step has failed."""
        self._let_go()

    def state_dict(self) -> dict[str, Any]:
        """The optimizer step that is being accumulated, and the batch of the epoch that it began with."""
        self._restore()  # optimizers are saved after callbacks, perhaps because a step has failed
        return {"step": self._step, "first_batch": self._first_batch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in the step that a checkpoint was saved in."""
        self._step, self._first_batch = state_dict["step"], state_dict["first_batch"]

    def _set(self, trainer: pl.Trainer) -> None:
        plan = self.ramp.plan_at(max(0, self._step))
        left = trainer.num_training_batches - self._first_batch  # infinite for a stream
        batches = min(plan.accumulate_grad_batches, max(1, left))
        trainer.accumulate_grad_batches = Accumulation(int(batches), self._first_batch)

    def _scale(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        factor = self.ramp.lr_factor(self._step, self.lr_scaling)
        lrs = [group["lr"] for group in optimizer.param_groups]
        self._unscaled = optimizer, [lr.clone() if isinstance(lr, Tensor) else lr for lr in lrs]
        for group in optimizer.param_groups:
            assign(group, "lr", group["lr"] * factor)

    def _unscale(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._restore()

    def _restore(self) -> None:
        if self._unscaled is not None:
            optimizer, lrs = self._unscaled
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                assign(group, "lr", lr)
            self._unscaled = None

    def _let_go(self) -> None:
        self._restore()
        while self._handles:
            self._handles.pop().remove()
