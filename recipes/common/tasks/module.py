"""The Lightning module of a task, but for its model and its loss."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_novograd.recipes.common.callbacks.guarded import GuardedSteps
from lightning_novograd.recipes.common.callbacks.nonfinite import DivergenceError
from lightning_novograd.recipes.common.metric import Metric
from lightning_novograd.recipes.common.tasks.data import Batch


class TaskModule(GuardedSteps, pl.LightningModule):
    """A model, its loss and one metric; the optimizer comes from the ``optim`` block.

    Logs ``train_loss``, ``dev_loss`` and ``test_loss`` (means over examples) and the same of the metric. Those of dev
    and test are of all ranks' examples, those of the training of the micro-batch at hand, on the first rank.

    A subclass says what `metric` it has, and defines :meth:`build` and :meth:`measure`.

    Args:
        model: the ``model`` block.
        optim: the optim block, see ``docs/optim_block.md``; None for a module that is only evaluated.

    Raises:
        ConfigError: a key of `model` or `optim` is unknown, misspelt, or has an impossible value.
    """

    metric: ClassVar[Metric]

    def __init__(self, model: Mapping[str, Any], optim: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.save_hyperparameters({"model": model, "optim": optim})
        self.model = self.build(model)
        if optim is not None:
            self.optim_config = optim
        self.dev_loss, self.test_loss = MeanMetric(nan_strategy="disable"), MeanMetric(nan_strategy="disable")
        self.dev_metric, self.test_metric = MeanMetric(nan_strategy="disable"), MeanMetric(nan_strategy="disable")

    @abstractmethod
    def build(self, model: Mapping[str, Any]) -> nn.Module:
        """The model of a ``model`` block."""

    @abstractmethod
    def measure(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and metric of each example, shape (B,)."""

    def forward(self, inputs: Tensor) -> Tensor:
        """What the model says of some inputs."""
        return self.model(inputs)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss of one micro-batch, times its weight."""
        losses_B, metric_B = self.measure(self(batch.inputs), batch.targets)
        loss = losses_B.mean()
        self.log("train_loss", loss, prog_bar=True, batch_size=batch.size)
        self.log(f"train_{self.metric.name}", metric_B.detach().mean(), prog_bar=True, batch_size=batch.size)
        return loss * batch.weight

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and metric on the dev set."""
        self._evaluate(batch, "dev")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and metric on the test set."""
        self._evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Refuse a loss that is not finite."""
        self._check_loss("dev")

    def on_test_epoch_end(self) -> None:
        """Refuse a loss that is not finite."""
        self._check_loss("test")

    def _evaluate(self, batch: Batch, split: str) -> None:
        losses_B, metric_B = self.measure(self(batch.inputs), batch.targets)
        loss, metric = getattr(self, f"{split}_loss"), getattr(self, f"{split}_metric")
        loss.update(losses_B)
        metric.update(metric_B)
        self.log(f"{split}_loss", loss, batch_size=batch.size, on_epoch=True)
        self.log(f"{split}_{self.metric.name}", metric, batch_size=batch.size, on_epoch=True, prog_bar=True)

    def _check_loss(self, split: str) -> None:
        if not torch.isfinite(getattr(self, f"{split}_loss").compute()):
            raise DivergenceError(f"{split} set: the loss is not finite (NaN or infinity)")
