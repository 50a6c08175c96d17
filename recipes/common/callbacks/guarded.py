"""A module that steps only where the run's guard lets it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightning_novograd import OptimMixin
from lightning_novograd.recipes.common.callbacks.nonfinite import NonFiniteGuard

if TYPE_CHECKING:
    import lightning.pytorch as pl

    class _Base(OptimMixin, pl.LightningModule): ...
else:
    _Base = OptimMixin


class GuardedSteps(_Base):
    """`OptimMixin` whose optimizer and schedule leave out the steps that a :class:`NonFiniteGuard` refuses.

    Attributes:
        guard: of the run; None: every step is made.
    """

    guard: NonFiniteGuard | None = None

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Lightning's hook: step, unless the guard has the step left out."""
        if self.guard is None or optimizer_closure is None:
            return super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        losses = [optimizer_closure()]  # LBFGS asks for more
        if not self.guard.passes(self.trainer, self):
            return
        count = self._step_count
        before = None if count is None else count.steps
        super().optimizer_step(epoch, batch_idx, optimizer, lambda: losses.pop() if losses else optimizer_closure())
        if count is not None and getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            self.guard.note_scaled_step(self.trainer, self, has_stepped=count.steps != before)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Lightning's hook: step the schedule, unless it counts steps and the optimizer's was left out."""
        sched = self._single("schedule").stepped
        waits = sched is not None and sched.interval == "step" and self.guard is not None and self.guard.is_skipping
        if not waits:
            super().lr_scheduler_step(scheduler, metric)
