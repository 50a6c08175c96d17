"""Loss, metric and learning rate of a run as one picture."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_novograd.recipes.common.callbacks.loss import MeanLoss
from lightning_novograd.recipes.common.metric import Metric


class Curves(pl.Callback):
    """Remembers loss, metric and learning rate against optimizer steps, and draws ``curves.png`` when fit ends.

    The loss is the mean over this rank's examples of the optimizer step. A subclass says how it is drawn
    (:func:`draw_curves`); by its name checkpoints know the points.

    The points travel in the checkpoint: the curves of a resumed run begin at its first step.

    Args:
        path: the picture to write.
        metric: of the dev set.
        every_n_steps: optimizer steps between two points of loss and learning rate.
    """

    def __init__(self, path: Path, metric: Metric, every_n_steps: int = 10) -> None:
        self.path, self.metric = path, metric
        self.every_n_steps = every_n_steps
        self.points: dict[str, list[tuple[int, float]]] = {"loss": [], "lr": [], self.metric.name: []}
        self._step = 0  # optimizer steps before the micro-batches below
        self._losses = MeanLoss()

    def state_dict(self) -> dict[str, Any]:
        """The points so far."""
        return {"points": self.points}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the points of an interrupted run."""
        self.points = {name: [(int(s), float(v)) for s, v in state_dict["points"][name]] for name in self.points}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with the step at which the run begins."""
        self._step, self._losses = trainer.global_step, MeanLoss()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep loss and LR of every `every_n_steps`-th optimizer step."""
        self._losses.add(trainer, outputs, batch)
        step = trainer.global_step
        if step == self._step:  # more micro-batches come
            return
        if step % self.every_n_steps == 0:
            self.points["loss"].append((step, self._losses.mean))
            self.points["lr"].append((step, float(trainer.optimizers[0].param_groups[0]["lr"])))
        self._step, self._losses = step, MeanLoss()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the metric of the dev set."""
        name, metrics = self.metric.name, trainer.callback_metrics
        if trainer.state.fn == "fit" and not trainer.sanity_checking and f"dev_{name}" in metrics:
            self.points[name].append((trainer.global_step, float(metrics[f"dev_{name}"])))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the curves, on rank 0."""
        if trainer.is_global_zero:
            self.draw()

    def draw(self) -> None:
        """Write the picture."""
        raise NotImplementedError


def draw_curves(points: dict[str, list[tuple[int, float]]], path: Path, metric: Metric, loss: str) -> None:
    """Write one picture with loss, metric and learning rate below each other against optimizer steps.

    Args:
        points: ``(step, value)`` pairs under ``loss``, the metric's name and ``lr``.
        path: the picture to write.
        metric: of the dev set.
        loss: what the loss is called.
    """
    from matplotlib.figure import Figure

    percent = ", %" if metric.is_fraction else ""
    titles = {"loss": f"{loss} (training)", metric.name: f"{metric.label} (dev){percent}", "lr": "learning rate"}
    figure = Figure(figsize=(8, 9), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(3, 1, sharex=True), titles.items(), strict=True):
        steps = [step for step, _ in points[name]]
        values = [100 * v if name == metric.name and metric.is_fraction else v for _, v in points[name]]
        axes.plot(steps, values, marker="o" if name == metric.name else None)
        axes.set_ylabel(title)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    axes.set_xlabel("optimizer step")
    figure.savefig(path, dpi=120)
