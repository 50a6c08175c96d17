"""N-gram language models of KenLM: the words in a file, and how they are spelt."""

import gzip
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.text.alphabet import Alphabet

# what models of characters write for a space, which separates words in the file
SPACES = ("|", "<space>", "▁")
_MARKS = frozenset({"<unk>", "<UNK>", "<s>", "</s>"})
_BINARY = b"mmap lm http://kheafield.com/code"
_GZIP = b"\x1f\x8b"


def read_words(path: Path) -> list[str]:
    """The words (unigrams) of a language model, without the marks of beginning, end and the unknown.

    Args:
        path: an ARPA file, plain or gzip, or a binary of KenLM's ``build_binary``, which has its words at the end.

    Raises:
        DataError: it is missing, or neither.
    """
    if not os.path.isfile(path):  # pathlib would raise for a name that is too long
        raise DataError(f"language model {path} does not exist")
    try:
        with open(path, "rb") as file:
            head = file.read(len(_BINARY))
        words = _of_binary(path) if head == _BINARY else _of_arpa(path, packed=head.startswith(_GZIP))
        found = [word for word in words if word not in _MARKS]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"language model {path} cannot be read: {error}") from None
    if not found:
        raise DataError(f"language model {path} is no ARPA file and no binary of KenLM's: no words are in it")
    return found


def _of_arpa(path: Path, packed: bool) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") if packed else open(path, encoding="utf-8") as file:
        inside = False
        for line in file:
            if line.startswith("\\"):
                if inside:
                    return
                inside = line.strip() == "\\1-grams:"
            elif inside and len(fields := line.split()) >= 2:
                yield fields[1]


def _of_binary(path: Path) -> list[str]:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        first = content.rfind(b"<unk>\0")
        return [] if first < 0 else content[first:].decode("utf-8").split("\0")[:-1]


def spellings(words: Iterable[str], alphabet: Alphabet) -> dict[str, list[int]]:
    """Class ids of each word that can be spelt, in another case where it cannot be as it is; the others are left out.

    Example:
        >>> spellings(["AB", "b", "x"], Alphabet(" ab"))
        {'AB': [1, 2], 'b': [2]}
    """
    letters = set(alphabet.labels) - {" "}
    found = {}
    for word in words:
        for form in (word, word.lower(), word.upper()):
            if letters.issuperset(form):
                found[word] = alphabet.encode(form)
                break
    return found


def is_of_characters(words: Iterable[str], alphabet: Alphabet) -> bool:
    """Whether the units of a model are the characters of the alphabet, not words."""
    units = set(words)
    spaces = units.intersection(SPACES)
    if " " in alphabet.labels and not spaces:
        return False
    return all(len(unit) == 1 for unit in units - spaces)
