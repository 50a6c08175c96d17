"""Alphabet: nothing outside it gets in; lengths that CTC needs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.text.alphabet import Alphabet, min_ctc_frames

ALPHABET = Alphabet([" ", *"abcdefghijklmnopqrstuvwxyz", "'"])


@given(st.text(alphabet=" abcdefghijklmnopqrstuvwxyz'"))
def test_decode_undoes_encode(text):
    assert ALPHABET.decode(ALPHABET.encode(text)) == text


def test_the_blank_is_the_last_class():
    assert ALPHABET.blank == len(ALPHABET) == 28
    assert ALPHABET.encode(" 'z") == [0, 27, 26]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("se7en", r"'7' \(U\+0037\) at position 2, .*; spell the numbers out first", id="digit"),
        pytest.param("Anna", r"'A' \(U\+0041\) at position 0, .*; it has 'a': change the case", id="upper case"),
        pytest.param("na\u00efve", r"'\u00ef' \(U\+00EF\) at position 2, which is not in the alphabet", id="accent"),
        pytest.param("a\tb", r"'\\t' \(U\+0009\) at position 1", id="control character"),
    ],
)
def test_characters_outside_are_named(text, message):
    with pytest.raises(DataError, match=message):
        ALPHABET.encode(text)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        pytest.param([], "is empty", id="none"),
        pytest.param(["a", "b", "a"], "holds 'a' more than once", id="twice"),
        pytest.param(["a", "th"], "'th' is not a single character", id="two characters"),
        pytest.param(["a", ""], "'' is not a single character", id="no character"),
        pytest.param(["a", 1], "1 is not a single character", id="a number"),
    ],
)
def test_bad_labels(labels, message):
    with pytest.raises(ConfigError, match=message):
        Alphabet(labels)


def test_alphabets_compare_by_their_labels():
    assert Alphabet("ab") == Alphabet(["a", "b"])
    assert Alphabet("ab") != Alphabet("ba")
    assert Alphabet("ab") != ["a", "b"]
    assert len({Alphabet("ab"), Alphabet(["a", "b"]), Alphabet("ba")}) == 2
    assert repr(Alphabet(["a", "'"])) == """Alphabet("a'")"""


def test_the_case_that_there_is_or_that_numbers_are_spelled_is_hinted_at():
    def hint(text: str) -> str:
        with pytest.raises(DataError) as error:
            Alphabet("aB").encode(text)
        head, _, hint = str(error.value).partition("which is not in the alphabet 'aB'")
        assert head == f"text {text!r} has {text[-1]!r} (U+{ord(text[-1]):04X}) at position {len(text) - 1}, "
        return hint

    assert hint("aA") == "; it has 'a': change the case of the text first (data.normalize.case=lower)"
    assert hint("ab") == "; it has 'B': change the case of the text first (data.normalize.case=upper)"
    assert hint("aa\u0308") == "; is the text in Unicode NFC? (data.normalize.unicode=NFC)"
    assert hint("a7") == "; spell the numbers out first"
    assert hint("ac") == ""


def test_all_labels_that_are_there_twice_are_named():
    with pytest.raises(ConfigError) as error:
        Alphabet("babcac")
    assert (error.value.path, error.value.problem) == ("labels", "holds 'a', 'b', 'c' more than once")


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.integers(0, 2))
def test_min_ctc_frames_is_where_the_loss_becomes_finite(ids, spare):
    def loss(frames: int) -> float:
        log_probs = torch.zeros(frames, 1, 4).log_softmax(-1)
        return torch.nn.functional.ctc_loss(log_probs, torch.tensor([ids]), [frames], [len(ids)], blank=3).item()

    needed = min_ctc_frames(ids)
    assert loss(needed + spare) < float("inf")
    if needed > 1:
        assert loss(needed - 1) == float("inf")
