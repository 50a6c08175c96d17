"""The words of a language model, from an ARPA file or a binary of KenLM's."""

import gzip
from pathlib import Path

import pytest

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.recognition.language_model import is_of_characters, read_words, spellings
from lightning_novograd.recipes.asr.text.alphabet import Alphabet

ARPA = """\\data\\
ngram 1=5
ngram 2=1

\\1-grams:
-1.0\t<unk>
0\t<s>\t-0.3
-0.9\t</s>
-0.6\tété\t-0.2
-0.7 ba -0.2

\\2-grams:
-0.2\t<s> no

\\end\\
"""


@pytest.mark.parametrize("kind", ["arpa", "gzip", "binary"])
def test_words_are_read_from_every_kind_of_file(tmp_path, kind):
    content = ARPA.encode()
    if kind == "gzip":
        content = gzip.compress(content)
    if kind == "binary":  # its header, numbers, and all words in the order of their ids
        words = "\0".join(["<unk>", "<s>", "</s>", "été", "ba", ""]).encode()
        content = b"mmap lm http://kheafield.com/code format version 5\n\0" + bytes(range(256)) + words
    path = tmp_path / "lm"
    path.write_bytes(content)
    assert read_words(path) == ["été", "ba"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is no ARPA file and no binary of KenLM's: no words are in it"),
        (b"some text\n", "is no ARPA file and no binary of KenLM's: no words are in it"),
        (b"\\1-grams:\n-1 <unk>\n\n\\end\\\n", "is no ARPA file and no binary of KenLM's: no words are in it"),
        (b"mmap lm http://kheafield.com/code", "is no ARPA file and no binary of KenLM's: no words are in it"),
        (b"\x1f\x8b\x00", "cannot be read: "),
        (b"\\1-grams:\n-1 \xff\n", "cannot be read: 'utf-8' codec can't decode"),
    ],
)
def test_what_is_no_language_model_is_one_line(tmp_path, content, problem):
    path = tmp_path / "lm"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_words(path)
    assert str(error.value).startswith(f"language model {path} {problem}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["lost.arpa", "", "a" * 300])
def test_a_language_model_that_is_not_there(tmp_path, name):
    with pytest.raises(DataError, match=r"does not exist$"):
        read_words(tmp_path / name if name else Path(tmp_path))


def test_words_are_spelt_as_they_are_or_in_another_case():
    alphabet = Alphabet(" abC")
    words = ["ab", "AB", "C", "c", "x", "a b"]
    assert spellings(words, alphabet) == {"ab": [1, 2], "C": [3], "c": [3], "AB": [1, 2]}


@pytest.mark.parametrize(
    ("units", "labels", "expected"),
    [
        (["a", "b", "|"], " ab", True),
        (["a", "b", "<space>"], " ab", True),
        (["a", "b"], " ab", False),  # words of one letter
        (["a", "b", "|", "ab"], " ab", False),
        (["日", "本"], "日本", True),
        (["日本"], "日本", False),
    ],
)
def test_models_of_characters_have_a_sign_for_the_space(units, labels, expected):
    assert is_of_characters(units, Alphabet(labels)) is expected
