"""A ResNet and its top-1 error."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from lightning_novograd.recipes.common.metric import Metric
from lightning_novograd.recipes.common.tasks.module import TaskModule
from lightning_novograd.recipes.common.tasks.task import Task
from lightning_novograd.recipes.image.data import ImageData
from lightning_novograd.recipes.image.model import ResNet, ResNetConfig


class ImageModule(TaskModule):
    """A :class:`ResNet` trained with cross-entropy; see :class:`TaskModule`."""

    metric = Metric("error", "top-1 error")

    def build(self, model: Mapping[str, Any]) -> ResNet:
        """The model of a ``model`` block."""
        return ResNet(ResNetConfig.read(model, "model"))

    def measure(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of each image, and whether its likeliest class is wrong."""
        losses = F.cross_entropy(outputs.float(), targets, reduction="none")
        return losses, (outputs.argmax(dim=1) != targets).float()


IMAGE = Task(data=ImageData, module=ImageModule, unit="images", loss="cross-entropy")
