"""Alphabets in files and of texts, and texts as an alphabet has them."""

import pytest

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.text.labels import labels_of, read_labels, write_labels
from lightning_novograd.recipes.asr.text.normalize import normalize


def test_labels_are_written_and_read_again(tmp_path):
    labels = [" ", "a", "ä", "'", "ß"]
    write_labels(tmp_path / "labels.txt", labels)
    assert (tmp_path / "labels.txt").read_text(encoding="utf-8") == " \na\nä\n'\nß\n"
    assert read_labels(tmp_path / "labels.txt") == labels


@pytest.mark.parametrize("content", [b" \na\n\xc3\xa4", b" \r\na\r\n\xc3\xa4\r\n", b"\xef\xbb\xbf \na\n\xc3\xa4\n"])
def test_files_of_other_editors_are_read_alike(content, tmp_path):
    (tmp_path / "labels.txt").write_bytes(content)
    assert read_labels(tmp_path / "labels.txt") == [" ", "a", "ä"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a\n\nb\n", "FILE:2: is empty; the label of the space is a line with one space"),
        ("", "FILE:1: is empty; the label of the space is a line with one space"),
        ("a\nbc\n", "FILE:2: 'bc' is not a single character"),
        ("a\nb \n", "FILE:2: 'b ' is not a single character"),
        ("a\u0308\n", "FILE:1: 'a\u0308' is not a single character; 'ä' is, in Unicode NFC"),
        (b"\xff\n", "labels FILE cannot be read: it is not UTF-8"),
        (None, "labels FILE cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_is_none_is_named_with_its_line(content, problem, tmp_path):
    path = tmp_path / "labels.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as error:
        read_labels(path)
    assert str(error.value).replace(str(path), "FILE") == problem


def test_the_alphabet_of_texts_is_sorted_with_the_space_first():
    texts = [("m:1", "zwölf äpfel"), ("m:2", "don't")]
    assert labels_of(texts) == [" ", "'", *"deflnoptwz", "ä", "ö"]
    assert labels_of([("m:1", "ba")]) == ["a", "b"], "no space where there is none"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a 7", "m:2: the text has '7', which labels=auto does not take; spell the numbers out, or list the labels"),
        ("a٣", "m:2: the text has '٣', which labels=auto does not take"),
        ("a\tb", r"m:2: the text has '\t' (U+0009), which is no letter"),
        ("a\u00a0b", r"m:2: the text has '\xa0' (U+00A0), which is no letter"),
        ("a\u200bb", r"m:2: the text has '\u200b' (U+200B), which is no letter"),
    ],
)
def test_what_cannot_be_a_label_is_named_with_its_line(text, problem):
    with pytest.raises(DataError) as error:
        labels_of([("m:1", "a"), ("m:2", text), ("m:3", text)])
    assert str(error.value).startswith(problem)


def test_no_text_is_no_alphabet():
    with pytest.raises(ConfigError, match=r"^model\.labels: is auto, but there is no training text$"):
        labels_of([])


@pytest.mark.parametrize(
    ("text", "case", "unicode", "expected"),
    [
        ("A\u0308 ﬁ", None, None, "A\u0308 ﬁ"),
        ("A\u0308 ﬁ", "lower", None, "a\u0308 ﬁ"),
        ("A\u0308 ﬁ", None, "NFC", "Ä ﬁ"),
        ("A\u0308 ﬁ", "lower", "NFKC", "ä fi"),
        ("Ä", None, "NFD", "A\u0308"),
        ("straße", "upper", None, "STRASSE"),
        ("\u1e9e\u0307I", "lower", "NFC", "ß\u0307i"),
        ("j\u030c", "upper", "NFC", "J\u030c"),
        ("J\u030c", "lower", "NFC", "\u01f0"),
    ],
)
def test_texts_get_one_case_and_one_form(text, case, unicode, expected):
    assert normalize(text, case, unicode) == expected
