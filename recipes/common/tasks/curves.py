"""What a run shows of itself."""

from pathlib import Path

from lightning_novograd.recipes.common.callbacks.curves import Curves, draw_curves
from lightning_novograd.recipes.common.tasks.task import Task


class TaskCurves(Curves):
    """Loss, metric and learning rate of a run as ``curves.png``.

    Args:
        path: the picture to write.
        task: whose loss and metric they are.
    """

    def __init__(self, path: Path, task: Task) -> None:
        self.loss = task.loss
        super().__init__(path, task.module.metric)

    def draw(self) -> None:
        """Write the picture."""
        draw_curves(self.points, self.path, self.metric, self.loss)
