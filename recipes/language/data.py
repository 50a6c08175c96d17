"""A text as sequences of characters."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.common.section import key
from lightning_novograd.recipes.common.tasks.data import DataSettings, Examples
from lightning_novograd.recipes.language.text import read_texts

# the same whatever the text, and so the model's size; the last stands for all others
CHARACTERS = "\n" + "".join(map(chr, range(32, 127))) + "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, kw_only=True)
class TextData(DataSettings):
    """The ``data`` block.

    Args:
        length: characters of a sequence.
        train_size: characters of the training text that are used, from its beginning; None: all.
    """

    length: int = key(128, low=1)
    train_size: int | None = key(None, low=1)

    def sets(self, seed: int) -> dict[str, Examples]:
        """Sequences of the three texts."""
        texts = read_texts()
        texts = {**texts, "train": texts["train"][: self.train_size]}
        return {
            name: Sequences(encode(text), self.length, seed=seed if name == "train" else None)
            for name, text in texts.items()
        }


class Sequences:
    """Sequences of a text and what follows each of their characters.

    Args:
        text_N: indices of characters.
        length: of a sequence.
        seed: has the sequences begin elsewhere in each epoch; None: they are always the same, from the first character.

    Raises:
        DataError: the text is shorter than two sequences.
    """

    def __init__(self, text_N: Tensor, length: int, seed: int | None = None) -> None:
        if len(text_N) < 2 * length:
            raise DataError(f"a text of {len(text_N)} characters is too short for sequences of {length}")
        self.text_N, self.length, self.seed = text_N, length, seed

    def __len__(self) -> int:
        # wherever the first one begins
        return len(self.text_N) // self.length - 1 if self.seed is not None else (len(self.text_N) - 1) // self.length

    def take(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, Tensor]:
        """Sequences, shape (B, T), and the same one character later."""
        first = 0 if self.seed is None else int(np.random.default_rng((self.seed, epoch)).integers(self.length))
        starts = first + self.length * torch.as_tensor(indices)
        taken = self.text_N[starts.unsqueeze(1) + torch.arange(self.length + 1)].long()
        return taken[:, :-1], taken[:, 1:]


def encode(text: str) -> Tensor:
    """Indices in `CHARACTERS`, as uint8.

    Example:
        >>> encode("a~").tolist(), encode("ß\N{SNOWMAN}").tolist()
        ([66, 95], [96, 96])
    """
    known = {character: index for index, character in enumerate(CHARACTERS)}
    return torch.tensor([known.get(character, len(CHARACTERS) - 1) for character in text], dtype=torch.uint8)
