"""What the other examples train: a module and data as they would be without this package."""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(1)
RADIUS, LABELS = torch.rand(1000), torch.arange(1000) % 2
ANGLE = 9 * RADIUS + torch.pi * LABELS
POINTS = torch.stack([RADIUS * ANGLE.cos(), RADIUS * ANGLE.sin()], dim=1)


class Net(pl.LightningModule):
    """Tells two spirals apart; has an optimizer of its own, plain SGD."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int = 0) -> torch.Tensor:
        """The loss of a batch."""
        points, labels = batch
        return nn.functional.cross_entropy(self.layers(points), labels)

    def train_dataloader(self) -> DataLoader:
        """20 batches of 50 points."""
        return DataLoader(TensorDataset(POINTS, LABELS), batch_size=50, shuffle=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """What a way in replaces."""
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def on_fit_end(self) -> None:
        """One line about the training."""
        report(self, self.optimizers(use_pl_optimizer=False))


def report(net: Net, optimizer: torch.optim.Optimizer) -> None:
    """Which optimizer it was, the LR behind the last step, and how many points are told apart."""
    right = (net.layers(POINTS).argmax(1) == LABELS).float().mean()
    print(f"{type(optimizer).__name__}, lr {optimizer.param_groups[0]['lr']:.4f} at the end, {right:.1%} right")
