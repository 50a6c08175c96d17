"""What a run shows of its layers."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_novograd.optim.larc.optimizer import LARC
from lightning_novograd.optim.norms import placed_like, squared_norms
from lightning_novograd.optim.wrapped import all_in
from lightning_novograd.training.amp import loss_scale, skipped_on_device
from lightning_novograd.training.callbacks.noise_scale import GradientNoiseScale
from lightning_novograd.training.callbacks.pictures import METRICS, draw_layers

__all__ = ["LayerMonitor"]

log = logging.getLogger(__name__)

# More columns than this and the heat map has less than a pixel for each; then every other one is dropped.
_MAX_RECORDS = 1024
# LARC's factors that are kept as they come before they are counted, in calls of its step
_MAX_UNCOUNTED = 64


@dataclass
class _Step:
    """One optimizer step of which the layers are measured; everything stays on the device."""

    optimizer: Optimizer
    layers: list[Tensor]
    sq_grad_norms: list[Tensor]
    before: list[Tensor]


class LayerMonitor(pl.Callback):
    r"""Logs per layer how large gradients, second moments and steps are, and draws them as a heat map.

    Every `every_n_steps` optimizer steps the loggers get, for every layer (a parameter tensor with its name):

    - `layer_grad_norm/NAME`: :math:`\|g\|` of the gradient that the step begins with: accumulated, reduced over ranks,
      unscaled, not yet clipped.
    - `layer_second_moment/NAME`: NovoGrad's :math:`v` after the step, a moving average of :math:`\|g\|^2`. Only for
      optimizers with one second moment per layer.
    - `layer_update_ratio/NAME`: :math:`\|\Delta w\| / \|w\|` of that step.
    - `layer_larc_clip_fraction/NAME`: in which fraction of the steps since the last record LARC's factor for the layer
      was below 1. Only under LARC.

    When fit ends, `layers.png` shows all of them against optimizer steps, and below them the gradient noise scale if
    the Trainer has a `GradientNoiseScale` too. Records travel in the checkpoint, so the picture of a resumed run begins
    at its first step. Layers that are thawed during the run appear from then on.

    Between records no value is fetched from the device, and nothing is computed but, every 64 steps, how many of LARC's
    factors were below 1. A record costs a copy of the weights
    during one step, three norms per layer and one transfer. All ranks measure (norms of sharded layers need them all);
    rank 0 writes.

    Args:
        every_n_steps: optimizer steps between two records, >= 1.
        folder: where to write `layers.png`; None: the trainer's `default_root_dir`.

    Raises:
        ValueError: `every_n_steps` is not a positive integer.

    Example:
        >>> import lightning.pytorch as pl
        >>> trainer = pl.Trainer(callbacks=[LayerMonitor(every_n_steps=50, folder="run")], logger=False)

    """

    def __init__(self, every_n_steps: int = 100, folder: str | Path | None = None) -> None:
        if not isinstance(every_n_steps, int) or every_n_steps < 1:
            raise ValueError(f"Invalid every_n_steps: {every_n_steps!r}; allowed: a positive integer")
        self.every_n_steps = every_n_steps
        self.folder = folder
        self.names: list[str] = []
        self.steps: list[int] = []
        self.records: list[Tensor] = []  # one (len(METRICS), len(names)) float32 per entry of steps; NaN: no value
        self._reset()

    def _let_go(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._reset()

    def _reset(self) -> None:
        self._columns: dict[Tensor, int] = {}
        self._handles: list[RemovableHandle] = []
        self._step: _Step | None = None
        self._measured: list[tuple[list[Tensor], Tensor]] = []
        self._factors: list[tuple[list[Tensor], Tensor]] = []
        self._uncounted = 0  # steps whose factors are in there
        self._clipped: Tensor | None = None  # (2, len(names)): factors below 1, and all factors, of steps before those

    def state_dict(self) -> dict[str, Any]:
        """The records so far."""
        return {"names": self.names, "steps": self.steps, "records": self.records}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the records of an interrupted run."""
        self.names, self.steps = list(state_dict["names"]), list(state_dict["steps"])
        self.records = list(state_dict["records"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the layers and watch the optimizers."""
        self._let_go()
        # another fit with the same callback, or one that goes back to an earlier checkpoint
        kept = sum(step <= trainer.global_step for step in self.steps)
        self.steps, self.records = self.steps[:kept], self.records[:kept]
        self._find_layers(pl_module)
        self._handles = [optimizer.register_step_post_hook(self._after_step) for optimizer in trainer.optimizers]

    def _find_layers(self, pl_module: pl.LightningModule) -> None:
        layers = {name: p for name, p in pl_module.named_parameters() if p.requires_grad or p in self._columns}
        names = list(layers)
        if names != self.names:
            self.records = [_reordered(record, self.names, names) for record in self.records]
            if self._clipped is not None:
                self._clipped = _reordered(self._clipped, self.names, names).nan_to_num()
            self.names = names
        self._columns = {p: index for index, p in enumerate(layers.values())}

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Take the gradients' norms and a copy of the weights, if this step is to be recorded."""
        self._step = None
        if (trainer.global_step // len(trainer.optimizers) + 1) % self.every_n_steps:
            return
        self._find_layers(pl_module)  # fine-tuning thaws layers in the middle of a run
        layers = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None and p in self._columns]
        if not layers:
            return
        grads = [placed_like(p.grad, p) for p in layers if p.grad is not None]
        with torch.no_grad():
            sq_grad_norms = squared_norms([grad.coalesce().values() if grad.is_sparse else grad for grad in grads])
            if (scale := loss_scale(trainer, optimizer)) != 1:
                sq_grad_norms = [norm / scale**2 for norm in sq_grad_norms]
            self._step = _Step(optimizer, layers, sq_grad_norms, [p.detach().clone() for p in layers])

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        larcs = [one for one in all_in(optimizer) if isinstance(one, LARC)]
        if larcs:
            self._factors += [factors for larc in larcs for factors in larc.factors]
            self._uncounted += 1
            if self._uncounted == _MAX_UNCOUNTED:
                self._count_factors()
        if self._step is None or self._step.optimizer is not optimizer:
            return
        step, self._step = self._step, None
        if skipped_on_device(optimizer):
            return
        count = len(step.layers)
        changes = [p.detach() - before for p, before in zip(step.layers, step.before, strict=True)]
        sq_norms = squared_norms([*step.before, *changes])
        device = sq_norms[0].device
        nan = torch.full((), math.nan, device=device)
        second_moments = [optimizer.state.get(p, {}).get("exp_avg_sq", nan) for p in step.layers]
        values = torch.stack(
            [
                _stacked(step.sq_grad_norms, device).sqrt(),
                _stacked([v if v.ndim == 0 else nan for v in second_moments], device),
                (_stacked(sq_norms[count:], device) / _stacked(sq_norms[:count], device)).sqrt(),
            ]
        )
        self._measured.append((step.layers, values))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what was measured, if anything was."""
        if not self._measured:
            return
        record = torch.full((len(METRICS), len(self.names)), math.nan, device="cpu")
        for layers, values in self._measured:
            record[:3, [self._columns[p] for p in layers]] = values.cpu()
        self._count_factors()
        if self._clipped is not None:
            record[3] = (self._clipped[0] / self._clipped[1]).cpu()
        self._measured, self._clipped = [], None
        self.steps.append(trainer.global_step)
        self.records.append(record)
        if len(self.records) > _MAX_RECORDS:
            self.steps, self.records = self.steps[::-2][::-1], self.records[::-2][::-1]
        if trainer.is_global_zero:
            metrics = {
                f"layer_{metric}/{name}": value
                for metric, row in zip(METRICS, record.tolist(), strict=True)
                for name, value in zip(self.names, row, strict=True)
                if not math.isnan(value)
            }
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step)

    def _count_factors(self) -> None:
        """Count the factors that have come, so that what is kept does not grow with the steps between records."""
        if self._factors:
            others = len(self.names)  # one column for layers that the module does not have
            device = self._factors[0][1].device
            columns = [self._columns.get(p, others) for layers, _ in self._factors for p in layers]
            where = torch.tensor(columns, device=device)
            factors = torch.cat([f.to(device, torch.float32) for _, f in self._factors])
            counts = torch.zeros(2, others + 1, device=device)
            counts[0].index_put_((where,), (factors < 1).float(), accumulate=True)
            counts[1].index_put_((where,), torch.ones_like(factors), accumulate=True)
            counts = counts[:, :others]
            self._clipped = counts if self._clipped is None else self._clipped + counts
        self._factors, self._uncounted = [], 0

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the optimizers go and draw the picture."""
        self._let_go()
        if not trainer.is_global_zero:
            return
        if not self.records:
            log.warning("no layers.png: fewer than every_n_steps=%d optimizer steps", self.every_n_steps)
            return
        folder = Path(trainer.default_root_dir if self.folder is None else self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by the Trainer's connector
        noise = next((c.curves() for c in callbacks if isinstance(c, GradientNoiseScale) and c.records), None)
        draw_layers(self.names, self.steps, torch.stack(self.records), folder / "layers.png", noise)


def _stacked(values: Sequence[Tensor], device: torch.device) -> Tensor:
    return torch.stack([value.detach().reshape(()).to(device, torch.float32) for value in values])


def _reordered(record: Tensor, names: Sequence[str], wanted: Sequence[str]) -> Tensor:
    """The columns of `record` for the layers that are `wanted`; NaN for new ones."""
    if list(names) == list(wanted):
        return record
    columns = {name: index for index, name in enumerate(names)}
    missing = record.new_full((len(record),), math.nan)
    return torch.stack([record[:, columns[name]] if name in columns else missing for name in wanted], dim=1)
