"""A Transformer and its bits per character."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from lightning_novograd.recipes.common.metric import Metric
from lightning_novograd.recipes.common.tasks.module import TaskModule
from lightning_novograd.recipes.common.tasks.task import Task
from lightning_novograd.recipes.language.data import TextData
from lightning_novograd.recipes.language.model import Transformer, TransformerConfig


class LanguageModule(TaskModule):
    """A :class:`Transformer` trained with cross-entropy; see :class:`TaskModule`."""

    metric = Metric("bpc", "bits per character", is_fraction=False)

    def build(self, model: Mapping[str, Any]) -> Transformer:
        """The model of a ``model`` block."""
        return Transformer(TransformerConfig.read(model, "model"))

    def measure(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy over the characters of each sequence, in nats and in bits."""
        losses = F.cross_entropy(outputs.float().transpose(1, 2), targets, reduction="none").mean(dim=1)
        return losses, losses / math.log(2)


LANGUAGE = Task(data=TextData, module=LanguageModule, unit="sequences", loss="cross-entropy, nats")
