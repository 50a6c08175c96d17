"""A residual network for small images."""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.common.section import Section, key


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(Section):
    """The ``model`` block.

    Args:
        widths: channels of each stage; every stage but the first halves height and width.
        blocks: residual blocks of a stage.
        stem_stride: of the first convolution; 2 halves height and width at once, for a quarter of the time.
        classes: to tell apart.
    """

    widths: list = key()
    blocks: int = key(2, low=1)
    stem_stride: int = key(1, low=1, high=2)
    classes: int = key(10, low=2)

    def check(self) -> None:
        """Widths are whole numbers."""
        good = (isinstance(width, int) and not isinstance(width, bool) and width > 0 for width in self.widths)
        if not self.widths or not all(good):
            raise ConfigError("widths", f"must be a list of whole numbers of at least 1, not {self.widths!r}")


class Block(nn.Module):
    """``x + conv(relu(norm(conv(relu(norm(x))))))``, or a 1x1 convolution of ``relu(norm(x))`` where the shape changes.

    Args:
        channels: of the input.
        width: channels of the output.
        stride: of height and width.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        changes = stride != 1 or channels != width
        self.shortcut = nn.Conv2d(channels, width, 1, stride, bias=False) if changes else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The next features."""
        before = F.relu(self.norm1(x_BCHW))
        kept = x_BCHW if self.shortcut is None else self.shortcut(before)
        return kept + self.conv2(F.relu(self.norm2(self.conv1(before))))


class ResNet(nn.Module):
    """A pre-activation ResNet (v2) as for CIFAR: no pooling before the end, three stages in its paper.

    Args:
        config: see :class:`ResNetConfig`.

    Example:
        >>> model = ResNet(ResNetConfig(widths=[8, 16], blocks=1))
        >>> import torch
        >>> model(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])

    Source: He, Zhang, Ren, Sun, arXiv 1603.05027.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        first, *_, last = widths = [config.widths[0], *config.widths]
        self.stem = nn.Conv2d(1, first, 3, config.stem_stride, padding=1, bias=False)
        self.blocks = nn.Sequential(
            *(
                Block(channels if block == 0 else width, width, 2 if block == 0 and stage > 0 else 1)
                for stage, (channels, width) in enumerate(pairwise(widths))
                for block in range(config.blocks)
            )
        )
        self.norm = nn.BatchNorm2d(last)
        self.head = nn.Linear(last, config.classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits ``(batch, classes)`` of images ``(batch, 1, height, width)``."""
        features = F.relu(self.norm(self.blocks(self.stem(x_BCHW))))
        return self.head(features.mean(dim=(2, 3)))
