"""Transcripts as lines of text, as JSON and as subtitles."""

import json
import textwrap
from collections.abc import Iterator, Sequence

from lightning_novograd.recipes.asr.recognition.trained_run import shown
from lightning_novograd.recipes.asr.recognition.transcription import Transcript
from lightning_novograd.recipes.asr.recognition.words import Word

LINE = 42  # characters in a line of a subtitle; two lines to a cue
CUE = 7.0  # s, the longest cue
PAUSE = 1.0  # s of silence that begins a new cue
SHORTEST_CUE = 0.8  # s; a word's last frame says little about how long it is to be read


def text_line(transcript: Transcript) -> str:
    """Path, tab, text."""
    return f"{shown(transcript.file)}\t{transcript.text}\n"


def json_line(transcript: Transcript) -> str:
    """One JSON object: file, text, duration (s), and each word with start and end (s) and confidence (0 to 1)."""
    words = [
        {"word": word.text, "start": word.start, "end": word.end, "confidence": word.confidence}
        for word in transcript.words
    ]
    document = {
        "file": shown(transcript.file), "text": transcript.text, "duration": transcript.duration, "words": words
    }  # fmt: skip
    return json.dumps(document, ensure_ascii=False) + "\n"


def srt(transcript: Transcript, space: str = " ") -> str:
    """SubRip subtitles.

    Args:
        transcript: a recording's.
        space: what stands between its words.

    Example:
        >>> from pathlib import Path
        >>> words = [Word("one", 0.5, 0.7, 1.0), Word("two", 61.0, 62.25, 1.0)]
        >>> print(srt(Transcript(Path("a.wav"), "one two", words, 62.5)), end="")
        1
        00:00:00,500 --> 00:00:01,300
        one
        <BLANKLINE>
        2
        00:01:01,000 --> 00:01:02,250
        two
        <BLANKLINE>
    """
    found = list(cues(transcript.words, space))
    blocks = []
    for number, cue in enumerate(found, start=1):
        start, end = cue[0].start, max(cue[-1].end, cue[0].start + SHORTEST_CUE)
        if number < len(found):
            end = min(end, found[number][0].start)
        lines = textwrap.wrap(space.join(word.text for word in cue), LINE)
        blocks.append("\n".join([str(number), f"{_clock(start)} --> {_clock(end)}", *lines, "\n"]))
    return "".join(blocks)


def cues(words: Sequence[Word], space: str = " ") -> Iterator[list[Word]]:
    """Words that are shown together: at most two lines of LINE characters and CUE seconds, no PAUSE between them."""
    cue: list[Word] = []
    for word in words:
        if cue:
            text = space.join(w.text for w in (*cue, word))
            long = word.end - cue[0].start > CUE or len(textwrap.wrap(text, LINE)) > 2
            if long or word.start - cue[-1].end >= PAUSE:
                yield cue
                cue = []
        cue.append(word)
    if cue:
        yield cue


def _clock(seconds: float) -> str:
    milliseconds = round(1000 * seconds)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d},{rest % 1000:03d}"
