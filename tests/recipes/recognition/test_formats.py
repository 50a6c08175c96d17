"""Transcripts as they are written: lines, JSON, subtitles."""

import json
from pathlib import Path

from lightning_novograd.recipes.asr.recognition.formats import CUE, LINE, cues, json_line, srt, text_line
from lightning_novograd.recipes.asr.recognition.transcription import Transcript
from lightning_novograd.recipes.asr.recognition.words import Word


def test_text_and_json_are_a_line_each():
    words = [Word("été", 0.1, 0.5, 0.75), Word("x", 1.0, 1.25, 1.0)]
    transcript = Transcript(Path("a\udce9\n.wav"), "été x", words, 2.5)
    assert text_line(Transcript(Path("a.wav"), "x", [], 1.0)) == "a.wav\tx\n"
    line = json_line(transcript)
    assert line.count("\n") == 1
    assert "été" in line
    assert json.loads(line) == {
        "file": "a\\udce9\n.wav",
        "text": "été x",
        "duration": 2.5,
        "words": [
            {"word": "été", "start": 0.1, "end": 0.5, "confidence": 0.75},
            {"word": "x", "start": 1.0, "end": 1.25, "confidence": 1.0},
        ],
    }


def spoken(count: int, step: float = 0.5, length: float = 0.3) -> list[Word]:
    return [Word(f"word{i:02d}", i * step, i * step + length, 1.0) for i in range(count)]


def test_cues_are_short_enough_to_be_read():
    words = spoken(40)
    found = list(cues(words))
    assert [word for cue in found for word in cue] == words
    assert all(cue[-1].end - cue[0].start <= CUE for cue in found)
    fast = spoken(60, step=0.1, length=0.05)
    for cue in cues(fast):
        lines = srt(Transcript(Path("a"), "", cue, 9.0)).splitlines()[2:-1]
        assert len(lines) <= 2
        assert max(map(len, lines)) <= LINE
    assert [len(cue) for cue in cues([words[0], words[1], words[4]])] == [2, 1]  # a pause
    assert list(cues([])) == []
    assert srt(Transcript(Path("a"), "", [], 1.0)) == ""


def test_a_short_cue_stays_until_the_next_one():
    words = [Word("a", 0.0, 0.1, 1.0), Word("b", 1.2, 1.3, 1.0), Word("c", 2.4, 9.9, 1.0), Word("d", 10.0, 3661.5, 1.0)]
    stamps = [line for line in srt(Transcript(Path("a"), "", words, 1.0)).splitlines() if "-->" in line]
    assert stamps == [
        "00:00:00,000 --> 00:00:00,800",
        "00:00:01,200 --> 00:00:02,000",
        "00:00:02,400 --> 00:00:09,900",
        "00:00:10,000 --> 01:01:01,500",
    ]


def test_without_spaces_words_are_written_together():
    words = [Word("日", 0.0, 0.1, 1.0), Word("本", 0.2, 0.3, 1.0)]
    assert srt(Transcript(Path("a"), "", words, 1.0), space="").splitlines()[2] == "日本"
