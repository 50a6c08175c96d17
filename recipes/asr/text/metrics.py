"""Word and character error rates."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor
from torchmetrics import Metric


class ErrorRate(Metric):
    """Edit distance between hypotheses and references over the length of the references.

    ``sum(distance(hypothesis, reference)) / sum(len(reference))``, both summed over all updates and all ranks before
    the division, so the result does not depend on how the utterances were batched or dealt to ranks. Words are what
    `str.split` makes; characters include the spaces between words.

    State: `errors` and `units`, int64 scalars.

    An empty reference adds every unit of its hypothesis to the errors and nothing to the length. Without any
    reference unit the rate is nan, or inf when there were insertions: there is no honest number for it.

    Args:
        unit: ``"word"`` (WER) or ``"char"`` (CER).

    Raises:
        ValueError: unknown unit; another number of hypotheses than of references.

    Example:
        >>> wer = ErrorRate("word")
        >>> wer.update(["one too three"], ["one two three four"])
        >>> wer.compute().item()
        0.5
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    errors: Tensor
    units: Tensor

    def __init__(self, unit: Literal["word", "char"] = "word", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if unit not in ("word", "char"):
            raise ValueError(f"unit must be 'word' or 'char', not {unit!r}")
        self.unit = unit
        self.add_state("errors", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("units", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, hypotheses: Sequence[str], references: Sequence[str]) -> None:
        """Count the errors of a batch."""
        if isinstance(hypotheses, str) or isinstance(references, str):
            raise TypeError("hypotheses and references are lists of texts, not one text")
        split = str.split if self.unit == "word" else str
        errors = units = 0
        for hypothesis, reference in zip(hypotheses, references, strict=True):
            expected = split(reference)
            errors += Levenshtein.distance(split(hypothesis), expected)
            units += len(expected)
        self.errors += errors
        self.units += units

    def compute(self) -> Tensor:
        """The rate as a fraction (it exceeds 1 when there are many insertions)."""
        return self.errors / self.units
