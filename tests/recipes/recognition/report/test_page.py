"""The report: one file, no code from what it shows, every number in its place."""

import base64
import html.parser
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tone_report import ATTACK, TonesOfReport, heard, tone_set, totals_of

from lightning_novograd.recipes.asr.recognition.report import media, page
from lightning_novograd.recipes.asr.recognition.report.media import player, spectrogram
from lightning_novograd.recipes.asr.recognition.report.page import percent, render, visible
from lightning_novograd.recipes.asr.recognition.report.published import read_published
from lightning_novograd.recipes.asr.recognition.words import Word

VOID = {"meta", "link", "img", "br"}


class Parser(html.parser.HTMLParser):
    """Elements with their attributes, and whether every one is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Parser:
    folder = tmp_path_factory.mktemp("set")
    dataset = tone_set(folder)
    hypotheses = heard(dataset)
    published = {"source": f"A paper {ATTACK}", "wer": {"test-clean": 0.0369, ATTACK: 0.1}, "here": "test-clean"}
    return Parser(render(TonesOfReport(), dataset, hypotheses, totals_of(dataset, hypotheses), published))


def test_it_is_one_file_without_scripts(rendered):
    assert rendered.open == []
    tags = [tag for tag, _ in rendered.elements]
    assert not {"script", "iframe", "object", "embed", "form", "base"}.intersection(tags)
    for tag, attributes in rendered.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "data", "poster", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    [policy] = [a["content"] for tag, a in rendered.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:; media-src data:;")


def test_texts_and_names_are_shown_as_they_are(rendered):
    # manifest, checkpoint, decoder, speaker, paper, reference and hypothesis
    assert rendered.words.count(ATTACK) >= 8
    images = [attributes for tag, attributes in rendered.elements if tag == "img"]
    assert {tuple(sorted(attributes)) for attributes in images} == {("alt", "height", "src", "width")}
    assert any(ATTACK in attributes["alt"] for attributes in images)


def test_every_number_is_there(rendered):
    text = rendered.words
    for part in (
        "0.250", "12,345 parameters", "A paper", "3.69 %", "Real-time factor", "By length", "By speaker",
        "speaker 1", "speaker 0", "Said, not heard", "95 % interval", "over utterances", "$x_1",
    ):  # fmt: skip
        assert part in text, part
    assert text.count("Worst utterances") == 1
    assert [tag for tag, _ in rendered.elements].count("article") == 8
    assert [tag for tag, _ in rendered.elements].count("audio") == 8


def test_it_can_be_read_by_all(rendered):
    elements = rendered.elements
    assert ("html", {"lang": "en"}) in elements
    levels = [int(tag[1]) for tag, _ in elements if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    for tag, attributes in elements:
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
        if tag == "audio":
            assert attributes["aria-label"]


def test_a_set_without_errors_or_speakers(tmp_path):
    dataset = tone_set(tmp_path, count=3)
    dataset.utterances[0].manifest.unlink()
    texts = [u.text for u in dataset.utterances]
    totals = {**totals_of(dataset, texts), "real_time_factor": None, "wer_interval": None}
    text = Parser(render(TonesOfReport(), dataset, texts, totals)).words
    assert "No utterance has errors." in text
    assert "By speaker" not in text
    assert "Beside published" not in text


def test_sound_is_bounded(tmp_path, monkeypatch):
    dataset = tone_set(tmp_path)
    hypotheses = heard(dataset)
    monkeypatch.setattr(page, "SOUND", 20_000)
    monkeypatch.setattr(media, "LONGEST", 2.0)
    monkeypatch.setattr(page, "LONGEST", 2.0)
    parsed = Parser(render(TonesOfReport(), dataset, hypotheses, totals_of(dataset, hypotheses)))
    sounds = [len(attributes["src"]) for tag, attributes in parsed.elements if tag == "audio"]
    assert 0 < sum(sounds) <= 20_000
    assert "No sound: the page would become too large." in parsed.words
    assert "The first 2 s are shown." in parsed.words


def test_a_player_plays_the_wave():
    wave = np.sin(np.arange(70 * 1000, dtype=np.float32)) * 1.5
    address = player(wave, 1000)
    assert address.startswith("data:audio/flac;base64,")
    played, rate = soundfile.read(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    assert (len(played), rate) == (30_000, 1000)
    assert played == pytest.approx(np.clip(wave[:30_000], -1, 1), abs=1e-4)


@pytest.mark.parametrize("samples", [1, 100, 16_000])
def test_a_spectrogram_is_a_picture_whatever_the_words_are(samples, recwarn):
    words = [Word(text, 0.1 * i, 0.1 * i + 0.05, 1.0) for i, text in enumerate(["$x_", "日本", "a" * 100, "\\frac{"])]
    address = spectrogram(np.zeros(samples, np.float32), 16_000, words)
    assert base64.b64decode(address.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    assert len(address) < 100_000
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_how_rates_and_spaces_are_written():
    assert [percent(None), percent(0.0), percent(1.23456)] == ["–", "0.00\u00a0%", "123.46\u00a0%"]
    assert [visible(" "), visible("a")] == ["␣", "a"]


WER = {"test-clean": 0.0369, "dev-other": 0.1084}


@pytest.mark.parametrize(
    ("published", "manifest", "expected"),
    [
        ({"source": "A", "wer": WER}, "test-clean.json", {"source": "A", "wer": WER, "here": "test-clean"}),
        ({"source": "A", "wer": WER}, "dev_other.json", {"source": "A", "wer": WER, "here": "dev-other"}),
        ({"source": "A", "wer": WER}, "mine.json", {"source": "A", "wer": WER, "here": None}),
        (
            {"source": "A", "wer": WER, "test_wer": 0.0369},
            "test.json",
            {"source": "A", "wer": WER, "here": "test-clean"},
        ),
        ({"source": "A", "wer": {"x": "y", "z": float("nan"), "b": True}}, "x.json", None),
        ({"source": "A", "wer": [1]}, "x.json", None),
        ({"source": "A"}, "x.json", None),
        ("A", "x.json", None),
        (None, "x.json", None),
    ],
)
def test_what_others_have_published(tmp_path, published, manifest, expected):
    (tmp_path / "results.json").write_text(json.dumps({"test_wer": 0.1, "published": published}))
    assert read_published(tmp_path, Path(manifest)) == expected


@pytest.mark.parametrize("content", [None, "", "[1]", "{", "[" * 100_000, "\udce9"])
def test_results_that_say_nothing(tmp_path, content):
    if content is not None:
        (tmp_path / "results.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert read_published(tmp_path, Path("x.json")) is None
