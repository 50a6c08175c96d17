"""What makes a task: its data, its model, its metric."""

from dataclasses import dataclass

from lightning_novograd.recipes.common.tasks.data import DataSettings
from lightning_novograd.recipes.common.tasks.module import TaskModule


@dataclass(frozen=True)
class Task:
    """What a recipe adds to the run that all of them share.

    Args:
        data: reads the ``data`` block and makes the sets.
        module: the Lightning module of the ``model`` and ``optim`` blocks.
        unit: what examples are called.
        loss: what the training loss is called.
    """

    data: type[DataSettings]
    module: type[TaskModule]
    unit: str
    loss: str

    @property
    def metric(self) -> str:
        """The dev set's number that a sweep minimizes, by its name in results.json."""
        return f"dev_{self.module.metric.name}"

    @property
    def rate(self) -> str:
        """The speed of the training, by its name in results.json."""
        return f"{self.unit}_per_s"
