"""What a run shows of itself."""

from pathlib import Path

from lightning_novograd.recipes.asr.training.callbacks.curves import CurveRecorder, draw_curves
from lightning_novograd.recipes.common.task import Task


class TaskCurves(CurveRecorder):
    """Loss, metric and learning rate of a run as ``curves.png``.

    Args:
        path: the picture to write.
        task: whose loss and metric they are.
    """

    def __init__(self, path: Path, task: Task) -> None:
        self.metric, self.loss = task.module.metric, task.loss
        super().__init__(path)

    def draw(self) -> None:
        """Write the picture."""
        draw_curves(self.points, self.path, self.metric, self.loss)
