"""A Transformer that predicts the next character."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.common.section import Section, key


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(Section):
    """The ``model`` block.

    Args:
        length: characters that it looks back at, its own included; at least ``data.length``.
        classes: characters that there are.
        width: of the features.
        layers: of attention and feed-forward.
        heads: of an attention; they share `width`.
        dropout: probability, behind every attention and feed-forward.
    """

    length: int = key(128, low=1)
    classes: int = key(97, low=2)
    width: int = key(96, low=1)
    layers: int = key(3, low=1)
    heads: int = key(4, low=1)
    dropout: float = key(0.0, low=0.0, below=1.0)

    def check(self) -> None:
        """Heads have equal shares."""
        if self.width % self.heads:
            raise ConfigError("heads", f"{self.heads} heads cannot share a width of {self.width} equally")


class Layer(nn.Module):
    """``x + attention(norm(x))``, then ``x + feed_forward(norm(x))``; no character sees a later one.

    Args:
        config: see :class:`TransformerConfig`.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.dropout = config.heads, nn.Dropout(config.dropout)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        # three layers, not one: an optimizer that normalizes by layer then gives each of them a step of its own
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """The next features."""
        batch, time, width = x_BTC.shape
        features = self.norm1(x_BTC)
        shape = (batch, time, self.heads, width // self.heads)
        queries, keys, values = (f(features).view(shape).transpose(1, 2) for f in (self.query, self.key, self.value))
        seen = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x_BTC = x_BTC + self.dropout(self.out(seen.transpose(1, 2).reshape(batch, time, width)))
        return x_BTC + self.dropout(self.down(F.gelu(self.up(self.norm2(x_BTC)))))


class Transformer(nn.Module):
    """A decoder with norms before its layers, learned positions, and one table for characters in and out.

    Args:
        config: see :class:`TransformerConfig`.

    Example:
        >>> model = Transformer(TransformerConfig(length=8, classes=5, width=8, layers=1, heads=2))
        >>> model(torch.zeros(2, 8, dtype=torch.int64)).shape
        torch.Size([2, 8, 5])
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.characters = nn.Embedding(config.classes, config.width)
        self.positions = nn.Embedding(config.length, config.width)
        layers = [Layer(config) for _ in range(config.layers)]
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for layer in layers:  # two additions a layer; so their sum begins as large as one
            for last in (layer.out, layer.down):
                nn.init.normal_(last.weight, std=0.02 / (2 * config.layers) ** 0.5)

    def forward(self, x_BT: Tensor) -> Tensor:
        """Logits ``(batch, length, classes)`` of what follows each character."""
        place = torch.arange(x_BT.shape[1], device=x_BT.device)
        features = self.layers(self.dropout(self.characters(x_BT) + self.positions(place)))
        return F.linear(self.norm(features), self.characters.weight)
