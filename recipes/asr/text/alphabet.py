"""Characters to class ids and back."""

import itertools
import unicodedata
from collections.abc import Iterable, Sequence

from lightning_novograd.errors import ConfigError, DataError


class Alphabet:
    """The output classes of a CTC model: one per character, and the blank as the last.

    Args:
        labels: the characters in class order, each one character long and none twice.

    Raises:
        ConfigError: labels are empty, repeat themselves, or one is not a single character.

    Example:
        >>> alphabet = Alphabet([" ", "a", "b"])
        >>> alphabet.encode("ab a"), alphabet.decode([1, 2, 0, 1]), alphabet.blank
        ([1, 2, 0, 1], 'ab a', 3)
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = list(labels)
        if not self.labels:
            raise ConfigError("labels", "is empty; a CTC model needs at least one character")
        for label in self.labels:
            if not isinstance(label, str) or len(label) != 1:
                raise ConfigError("labels", f"{label!r} is not a single character")
        self._ids = {label: i for i, label in enumerate(self.labels)}
        if len(self._ids) < len(self.labels):
            twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
            raise ConfigError("labels", f"holds {', '.join(map(repr, twice))} more than once")

    @property
    def blank(self) -> int:
        """Class id of the CTC blank: the one after the last character, as in NeMo."""
        return len(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Alphabet) and self.labels == other.labels

    def __hash__(self) -> int:
        return hash(tuple(self.labels))

    def __repr__(self) -> str:
        return f"Alphabet({''.join(self.labels)!r})"

    def encode(self, text: str) -> list[int]:
        """Class ids of the characters of `text`.

        Raises:
            DataError: a character is not in the alphabet. It is never replaced or left out: what the model would
                learn then is not what the text says.
        """
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            character = error.args[0]
            raise DataError(
                f"text {text!r} has {character!r} (U+{ord(character):04X}) at position {text.index(character)}, "
                f"which is not in the alphabet {''.join(self.labels)!r}{self._hint(character)}"
            ) from None

    def _hint(self, character: str) -> str:
        for other in (character.lower(), character.upper()):
            if other in self._ids:
                case = "lower" if other.islower() else "upper"
                return f"; it has {other!r}: change the case of the text first (data.normalize.case={case})"
        if unicodedata.combining(character):
            return "; is the text in Unicode NFC? (data.normalize.unicode=NFC)"
        return "; spell the numbers out first" if character.isdigit() else ""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of class ids without blanks."""
        return "".join([self.labels[i] for i in ids])


def min_ctc_frames(ids: Sequence[int] | str) -> int:
    """The fewest output frames that can spell `ids` (or a text): one each, and a blank between equal neighbours.

    Example:
        >>> min_ctc_frames([1, 2, 2])
        4
    """
    return len(ids) + sum(a == b for a, b in itertools.pairwise(ids))
