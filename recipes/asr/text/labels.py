"""Alphabets in files, and of texts."""

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from lightning_novograd.commands.output import whole_file
from lightning_novograd.errors import ConfigError, DataError


def read_labels(path: Path) -> list[str]:
    """The labels of a file with one on each line, UTF-8; the space is a line with one space.

    Raises:
        DataError: it cannot be read, or a line is no single character; the message names the line.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"labels {path} cannot be read: it is not UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise DataError(f"labels {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    labels = content.removesuffix("\n").split("\n")
    for line, label in enumerate(labels, start=1):
        if not label:
            raise DataError(f"{path}:{line}: is empty; the label of the space is a line with one space")
        if len(label) > 1:
            composed = unicodedata.normalize("NFC", label)
            hint = f"; {composed!r} is, in Unicode NFC" if len(composed) == 1 else ""
            raise DataError(f"{path}:{line}: {label!r} is not a single character{hint}")
    return labels


def write_labels(path: Path, labels: Iterable[str]) -> None:
    """Write what :func:`read_labels` reads.

    Raises:
        ConfigError: the file cannot be written.
    """
    with whole_file(path) as partial:
        partial.write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")


def labels_of(texts: Iterable[tuple[str, str]]) -> list[str]:
    """The characters of texts, sorted; the space comes first.

    Args:
        texts: each with where it stands, for messages.

    Raises:
        DataError: there is a digit, which nobody says as it is written, or a character that cannot be heard.

    Example:
        >>> labels_of([("a.json:1", "no one")])
        [' ', 'e', 'n', 'o']
    """
    first: dict[str, str] = {}
    for where, text in texts:
        for character in text:
            first.setdefault(character, where)
    for character, where in sorted(first.items()):
        if character.isdigit():
            hint = "spell the numbers out, or list the labels where digits are meant"
            raise DataError(f"{where}: the text has {character!r}, which labels=auto does not take; {hint}")
        if character != " " and (character.isspace() or not character.isprintable()):
            raise DataError(f"{where}: the text has {character!r} (U+{ord(character):04X}), which is no letter")
    if not first:
        raise ConfigError("model.labels", "is auto, but there is no training text")
    return sorted(first, key=lambda character: (character != " ", character))
