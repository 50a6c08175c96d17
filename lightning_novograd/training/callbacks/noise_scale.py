"""How noisy the gradients of a run are."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_novograd.large_batch.noise_scale import RunningNoise, gradient_noise
from lightning_novograd.log import rank_zero_logger
from lightning_novograd.optim.norms import accumulation_dtype, squared_norms
from lightning_novograd.optim.selection import matching
from lightning_novograd.training.amp import loss_scale
from lightning_novograd.training.callbacks.pictures import NoiseCurves, draw_noise

__all__ = ["GradientNoiseScale"]

log = rank_zero_logger(__name__)

# More records than this and every other one is dropped
_MAX_RECORDS = 4096


@dataclass(frozen=True)
class _Record:
    """What was measured at an optimizer step, and the running means from there on."""

    step: int
    batch_size: float
    sq_gradient: float
    trace: float
    running: RunningNoise


@dataclass
class _Window:
    """The micro-batches of one optimizer step that is measured."""

    handles: list[RemovableHandle]
    incoming: list[Tensor] = field(default_factory=list)  # squared norms of this backward's gradients, by parameter
    sq_norms: list[Tensor] = field(default_factory=list)  # of each backward's gradient
    inverse_sizes: list[float] = field(default_factory=list)  # 1 / samples of each micro-batch
    inverse_size: float = 0.0  # of the present one
    sq_norm_of_sum: Tensor | None = None  # of the gradient that the step sees, over all ranks their mean
    scales: tuple[float, float] = (1.0, 1.0)  # of the loss in the gradients of micro-batches, and in the step's


class GradientNoiseScale(pl.Callback):
    r"""Logs the gradient noise scale: up to about which batch a larger one saves steps in proportion.

    .. math::
        B_\mathrm{simple} = \operatorname{tr}\Sigma / |G|^2

    with the true gradient :math:`G` and the covariance :math:`\Sigma` of the gradient of one sample. Both are estimated
    without bias (`gradient_noise`) from what accumulation and DDP have anyway: the gradient of each micro-batch on each
    rank, of which the norm is taken as it comes out of the backward pass, and their mean, with which the optimizer
    steps. Loss scales of fp16 and of accumulation are taken out; clipping comes later.

    Every `every_n_steps` optimizer steps the loggers get

    - `noise_scale/running`: the ratio of the running means of :math:`\operatorname{tr}\Sigma` and :math:`|G|^2`, in
      samples. Look at this one.
    - `noise_scale/sq_gradient` and `noise_scale/trace`: the estimates of this step, which scatter widely; the former
      may be negative.

    When fit ends, `noise_scale.png` shows them against optimizer steps. Records and running means travel in the
    checkpoint.

    Of all parameters only those of normalization layers are looked at: their noise scale follows the whole model's
    (Gray et al.), at nearly no cost; micro-batches that use none of them do not count. Between the steps that are
    measured nothing is done. One process without accumulation has only one batch size: nothing can be measured then,
    and a warning says so; likewise where parameters are sharded, and under manual optimization. Samples of a batch must
    not depend on each other: where BatchNorm mixes them, the values are those of the loss with batches of this size.

    Args:
        every_n_steps: optimizer steps between two measurements, >= 1.
        match: which parameters, as in a rule of the optim block: `"norm"`, globs over names; `"*"` for all.
        smoothing: how much the running means keep at each measurement, 0 <= smoothing < 1.
        batch_size: samples of a micro-batch, if not the length of its first tensor; called with the micro-batch.
        folder: where to write `noise_scale.png`; None: the trainer's `default_root_dir`.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import lightning.pytorch as pl
        >>> noise_scale = GradientNoiseScale(every_n_steps=20)
        >>> trainer = pl.Trainer(accumulate_grad_batches=4, callbacks=[noise_scale], logger=False)

    McCandlish et al., https://arxiv.org/abs/1812.06162; Gray et al., https://arxiv.org/abs/2411.00999

    """

    def __init__(
        self,
        every_n_steps: int = 10,
        match: str | Sequence[str] = "norm",
        smoothing: float = 0.98,
        batch_size: Callable[[Any], int] | None = None,
        folder: str | Path | None = None,
    ) -> None:
        if not isinstance(every_n_steps, int) or every_n_steps < 1:
            raise ValueError(f"Invalid every_n_steps: {every_n_steps!r}; allowed: a positive integer")
        if not 0 <= smoothing < 1:
            raise ValueError(f"Invalid smoothing: {smoothing!r}; allowed: at least 0 and below 1")
        self.every_n_steps = every_n_steps
        self.match = [match] if isinstance(match, str) else list(match)
        self.smoothing = smoothing
        self.batch_size = batch_size
        self.folder = folder
        self.records: list[_Record] = []
        self._params: list[Tensor] = []
        self._zero = torch.zeros(())  # of the device and dtype in which norms are added up
        self._window: _Window | None = None
        self._warned = False

    @property
    def running(self) -> RunningNoise:
        """The running means so far."""
        return self.records[-1].running if self.records else RunningNoise()

    def curves(self) -> NoiseCurves:
        """The records as they are drawn."""
        means = [record.running.mean for record in self.records]
        return NoiseCurves(
            steps=[record.step for record in self.records],
            scale=[mean.scale for mean in means],
            batch_size=[record.batch_size for record in self.records],
            sq_gradient=[mean.sq_gradient for mean in means],
            trace=[mean.trace for mean in means],
        )

    def state_dict(self) -> dict[str, Any]:
        """The records so far, with their running means."""
        return {"records": [asdict(record) for record in self.records]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the records of an interrupted run."""
        self.records = [
            _Record(**{**saved, "running": RunningNoise(**saved["running"])}) for saved in state_dict["records"]
        ]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See whether there is something to measure."""
        self._close()
        # another fit with the same callback, or one that goes back to an earlier checkpoint
        self.records = [record for record in self.records if record.step <= trainer.global_step]
        self._warned = False
        self._params = []
        if trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy):
            log.warning(
                "no gradient noise scale: it needs the gradients of each rank, which %s does not have",
                type(trainer.strategy).__name__,
            )
        elif not pl_module.automatic_optimization:
            log.warning(
                "no gradient noise scale: under manual optimization nobody says which backward belongs to a step"
            )
        else:
            self._params = list(matching(pl_module, self.match, "GradientNoiseScale").values())
            dtypes = {accumulation_dtype(p.dtype) for p in self._params}
            dtype = torch.float64 if torch.float64 in dtypes else torch.float32
            self._zero = torch.zeros((), device=self._params[0].device, dtype=dtype)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look at the gradients from here to the optimizer's step, if that is to be measured."""
        if self._window is None:
            if not self._params or (trainer.global_step + 1) % self.every_n_steps:
                return
            self._window = _Window([p.register_hook(self._on_gradient) for p in self._params if p.requires_grad])
        self._window.inverse_size = 1 / (self.batch_size or extract_batch_size)(batch)

    def _on_gradient(self, grad: Tensor) -> None:
        """Autograd's hook: a parameter's gradient of this backward, before it is accumulated or reduced over ranks."""
        assert self._window is not None
        self._window.incoming += squared_norms([_dense(grad.detach())])

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add up what one micro-batch has brought."""
        if (window := self._window) is not None and window.incoming:
            window.sq_norms.append(self._sum(window.incoming))
            window.inverse_sizes.append(window.inverse_size)
            window.incoming = []

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Take the norm of the gradients' mean."""
        if (window := self._window) is None:
            return
        # A rank whose micro-batches have used none of the parameters goes on as well: others wait for its count of 0
        grads = [_dense(p.grad) for p in self._params if p.grad is not None]
        window.sq_norm_of_sum = self._sum(squared_norms(grads))
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        window.scales = (1.0 if scaler is None else scaler.get_scale(), loss_scale(trainer, optimizer))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what was measured, if anything was."""
        if (window := self._window) is None or window.sq_norm_of_sum is None:
            return
        self._close()
        record = self._record(trainer, window, window.sq_norm_of_sum)
        if record is None:
            return
        self.records.append(record)
        if len(self.records) > _MAX_RECORDS:
            self.records = self.records[::-2][::-1]
        if trainer.is_global_zero:
            values = {"running": record.running.mean.scale, "sq_gradient": record.sq_gradient, "trace": record.trace}
            metrics = {f"noise_scale/{name}": value for name, value in values.items() if not math.isnan(value)}
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step)

    def _record(self, trainer: pl.Trainer, window: _Window, sq_norm_of_sum: Tensor) -> _Record | None:
        """The estimates of a step; None if at most one micro-batch has used the parameters, or for an overflow."""
        sq_norms = self._sum(window.sq_norms)
        counts = sq_norms.new_tensor([len(window.sq_norms), sum(window.inverse_sizes)])
        # the one transfer, and under DDP the one collective
        sums = trainer.strategy.reduce(torch.stack([sq_norms, *counts]), reduce_op="sum")
        total, parts, inverse_sizes = sums.tolist()
        if parts < 2:
            if not self._warned and trainer.accumulate_grad_batches == trainer.world_size == 1:
                log.warning(
                    "no gradient noise scale: one process without accumulation has one batch size, and two are needed; "
                    "set accumulate_grad_batches to 2 or more, or use several processes"
                )
                self._warned = True
            return None
        # Gradients of micro-batches have the loss divided by this, whether or not as many came
        divisor = trainer.accumulate_grad_batches
        of_parts, of_step = window.scales
        small = total / parts * (divisor / of_parts) ** 2
        large = sq_norm_of_sum.item() * (trainer.world_size / parts * divisor / of_step) ** 2
        if not (math.isfinite(small) and math.isfinite(large)):
            return None
        size = parts / inverse_sizes
        noise = gradient_noise(small, large, size, parts * size)
        running = self.running.and_then(noise, self.smoothing)
        return _Record(trainer.global_step, parts * size, noise.sq_gradient, noise.trace, running)

    def _sum(self, sq_norms: Sequence[Tensor]) -> Tensor:
        """The sum of norms that may be of several devices and dtypes; of one dtype on all ranks."""
        return torch.stack([self._zero, *(norm.to(self._zero) for norm in sq_norms)]).sum()

    def _close(self) -> None:
        for handle in self._window.handles if self._window is not None else ():
            handle.remove()
        self._window = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Let the parameters go."""
        self._close()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the parameters go and draw the picture."""
        self._close()
        if not trainer.is_global_zero or not self.records:
            return
        folder = Path(trainer.default_root_dir if self.folder is None else self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        draw_noise(self.curves(), folder / "noise_scale.png")


def _dense(grad: Tensor) -> Tensor:
    return grad.coalesce().values() if grad.is_sparse else grad
