"""Words and their times, from the frames of a path."""

import numpy as np
import pytest
import torch

from lightning_novograd.recipes.asr.model.jasper import JasperCTC
from lightning_novograd.recipes.asr.recognition.recognizer import Recognizer
from lightning_novograd.recipes.asr.recognition.words import separator, words_of
from lightning_novograd.recipes.asr.text.alphabet import Alphabet
from lightning_novograd.recipes.asr.text.decode import CTCPath, best_paths, greedy, runs

SPELT = Alphabet(" ab")


def path_of(frames: str, probabilities: float | list[float] = 1.0) -> CTCPath:
    """`"aa-b"`: a frame for each character, `-` is the blank."""
    ids = np.array(["_ab-".index(c) if c != " " else 0 for c in frames])
    return CTCPath(ids, np.log(np.broadcast_to(probabilities, len(ids)).astype(np.float64)))


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ("", []),
        ("---  -", []),
        ("ab", [("ab", 0.0, 0.2)]),
        ("aa-ab", [("aab", 0.0, 0.5)]),
        (" --a-b- - bb ", [("ab", 0.3, 0.6), ("b", 1.0, 1.2)]),
        ("-a - b", [("a", 0.1, 0.2), ("b", 0.5, 0.6)]),
    ],
)
def test_words_lie_between_spaces(frames, expected):
    words = words_of(path_of(frames), SPELT, 0.1)
    assert [(word.text, word.start, word.end) for word in words] == expected
    later = words_of(path_of(frames), SPELT, 0.1, begin=60.0)
    assert [(w.start, w.end) for w in later] == [(pytest.approx(60 + s), pytest.approx(60 + e)) for _, s, e in expected]


def test_confidence_is_the_geometric_mean_of_each_characters_best_frame():
    [word] = words_of(path_of("aa-b", [0.5, 0.8, 0.1, 0.2]), SPELT, 0.1)
    assert word.confidence == pytest.approx(0.4)


def test_without_a_space_every_character_is_a_word():
    alphabet = Alphabet("xab")
    path = CTCPath(np.array([1, 1, 3, 2]), np.zeros(4))
    assert [(w.text, w.start, w.end) for w in words_of(path, alphabet, 0.5)] == [("a", 0.0, 1.0), ("b", 1.5, 2.0)]
    assert (separator(alphabet), separator(SPELT)) == ("", " ")


def test_paths_collapse_to_the_texts_of_greedy_decoding():
    torch.manual_seed(0)
    log_probs_BTV = torch.randn(8, 40, 4).log_softmax(-1)
    lens_B = torch.tensor([40, 39, 30, 20, 10, 2, 1, 0])
    paths = best_paths(log_probs_BTV, lens_B, SPELT)
    texts = [SPELT.decode(runs(path.ids_T, SPELT.blank)[:, 0].tolist()) for path in paths]
    assert texts == greedy(log_probs_BTV, lens_B, SPELT)
    assert [len(path.ids_T) for path in paths] == lens_B.tolist()
    assert torch.equal(torch.from_numpy(paths[0].log_probs_T), log_probs_BTV[0].max(-1).values)
    with pytest.raises(ValueError, match="the model has 4 classes, the alphabet 2 characters and a blank"):
        best_paths(log_probs_BTV, lens_B, Alphabet("ab"))


@pytest.mark.parametrize(("stride", "repeat", "expected"), [(1, 1, 0.0125), (2, 1, 0.025), (2, 3, 0.1)])
def test_a_frame_is_the_stride_of_the_features_times_those_of_the_blocks(stride, repeat, expected):
    blocks = [
        {"filters": 4, "kernel": 11, "stride": stride, "repeat": repeat, "residual": False},
        {"filters": 4, "kernel": 11, "residual": True},
    ]
    config = {
        "labels": ["a", "b"],
        "preprocessor": {"sample_rate": 8000, "window_stride": 0.0125},
        "encoder": {"jasper": blocks},
    }
    model = JasperCTC.from_config(config)
    recognizer = Recognizer(model)
    assert recognizer.frame_seconds == pytest.approx(expected)
    # as many frames as that in an hour
    [frames] = model.output_lengths(torch.tensor([8000 * 3600])).tolist()
    assert frames == pytest.approx(3600 / expected, abs=1)
    assert recognizer.num_parameters == sum(p.numel() for p in model.parameters())


def test_a_recognizer_decodes_with_what_it_is_given():
    model = JasperCTC.from_config(
        {"labels": ["a"], "encoder": {"jasper": [{"filters": 4, "kernel": 3, "residual": False}]}}
    )
    recognizer = Recognizer(model)
    asked = []
    recognizer.decoder = lambda log_probs, lens: (
        asked.append((log_probs.shape, lens)) or [CTCPath(np.array([0, 1, 0]), np.zeros(3))]
    )
    wave = torch.zeros(1, 1600)
    assert recognizer(wave, torch.tensor([1600])) == ["aa"]
    assert recognizer.text(recognizer.paths(wave, torch.tensor([1600]))[0]) == "aa"
    assert asked[0] == asked[1] == (torch.Size([1, 16, 2]), torch.tensor([10]))
