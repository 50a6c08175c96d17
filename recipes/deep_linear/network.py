"""The paper's smallest network, two linear layers of one weight each, and how an optimizer trains it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_novograd.config import build_optimizers

STEPS = 500
BETAS = (0.95, 0.5)
# all average the gradient, m = b1*m + (1-b1)*g, so that one learning rate means the same for each of them
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"name": "sgd", "momentum": BETAS[0], "dampening": BETAS[0]},
    "Adam": {"name": "adam", "betas": BETAS},
    "AdamW": {"name": "adamw", "betas": BETAS},
    "NovoGrad": {"name": "novograd", "betas": BETAS, "grad_averaging": True},
}
# beyond this no step leads back
_LOST = 1e6
_TAIL = 100  # steps


class DeepLinear(nn.Module):
    """``y = w1 * w2 * x``: linear in the input, and not in its weights.

    Args:
        start: w1 and w2.

    Parameters: ``w1`` and ``w2``, each a layer with one weight, float64.
    """

    def __init__(self, start: tuple[float, float]) -> None:
        super().__init__()
        self.w1, self.w2 = (nn.Parameter(torch.tensor([w], dtype=torch.float64)) for w in start)

    def forward(self) -> Tensor:
        """The loss ``(w1*w2 - 1)^2``, for y should be 1 where x is."""
        return (self.w1 * self.w2 - 1.0).square().sum()

    @torch.no_grad()
    def set_gradients(self) -> None:
        """Fill the gradients, ``2*(w1*w2 - 1)*(w2, w1)``: autograd takes five times as long for so little."""
        slope = 2.0 * (self.w1 * self.w2 - 1.0)
        self.w1.grad, self.w2.grad = slope * self.w2, slope * self.w1


@dataclass(frozen=True)
class Run:
    """What became of one training.

    Args:
        path: (w1, w2) before the first step and after each, up to where it diverged.
        diverged: whether a weight went beyond 1e6, or was no number.
    """

    path: list[tuple[float, float]]
    diverged: bool

    @property
    def losses(self) -> list[float]:
        """At every point of the path."""
        return [(w1 * w2 - 1.0) ** 2 for w1, w2 in self.path]

    @property
    def final_loss(self) -> float:
        """The largest of the last 100 steps, so that who oscillates is not measured at a lucky moment; or infinity."""
        return math.inf if self.diverged else max(self.losses[-_TAIL:])

    @property
    def distance(self) -> float:
        """From where it ended to the nearer of the flattest minima, (1, 1) and (-1, -1); or infinity."""
        w1, w2 = self.path[-1]
        return math.inf if self.diverged else min(math.hypot(w1 - 1, w2 - 1), math.hypot(w1 + 1, w2 + 1))


def train(
    block: Mapping[str, Any], lr: float, weight_decay: float, start: tuple[float, float], steps: int = STEPS
) -> Run:
    """Minimize ``(w1*w2 - 1)^2`` with a constant learning rate.

    Args:
        block: of the optimizer, as in a config's ``optim``, without ``lr`` and ``weight_decay``.
        lr: learning rate.
        weight_decay: as the optimizer has it: L2 in the gradient for SGD and Adam, decoupled for AdamW and NovoGrad.
        start: w1 and w2.
        steps: of the optimizer.

    Returns:
        The path; it ends early where it diverges.

    Example:
        >>> train(OPTIMIZERS["NovoGrad"], lr=0.2, weight_decay=0.1, start=(0.2, 4.0)).distance < 0.05
        True
    """
    model = DeepLinear(start)
    optimizer = build_optimizers({**block, "lr": lr, "weight_decay": weight_decay}, model)["optimizer"]
    if block["name"] == "sgd":
        # the paper's momentum begins with zero; torch's begins with the first gradient, 20 times as much of it as later
        for weight in model.parameters():
            optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    path = [start]
    for _ in range(steps):
        model.set_gradients()
        optimizer.step()
        w1, w2 = model.w1.item(), model.w2.item()
        if not (abs(w1) < _LOST and abs(w2) < _LOST):  # NaN too
            return Run(path, diverged=True)
        path.append((w1, w2))
    return Run(path, diverged=False)
