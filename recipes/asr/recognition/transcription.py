"""Files to transcripts, several recordings in one batch."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.recognition.recognizer import Recognizer
from lightning_novograd.recipes.asr.recognition.recording import read_segments
from lightning_novograd.recipes.asr.recognition.segments import LONGEST, Segment, join
from lightning_novograd.recipes.asr.recognition.words import Word, separator, words_of

# batches that are collected before the longest pieces are put together
_POOLED = 4


@dataclass(frozen=True)
class Transcript:
    """What is said in a recording.

    Args:
        file: the recording.
        text: all of it.
        words: with their times.
        duration: s, of the recording.
    """

    file: Path
    text: str
    words: list[Word]
    duration: float


@dataclass
class _Recording:
    """A file on its way through the model."""

    file: Path
    joints: list[float | None] = field(default_factory=list)
    texts: dict[int, str] = field(default_factory=dict)  # by segment
    words: dict[int, list[Word]] = field(default_factory=dict)
    duration: float = 0.0
    read: bool = False
    error: DataError | None = None

    @property
    def done(self) -> bool:
        return self.error is not None or (self.read and len(self.texts) == len(self.joints))


def transcribe_files(
    recognizer: Recognizer,
    files: Iterable[Path],
    downmix: bool = False,
    batch_size: int = 1,
    longest: float = LONGEST,
) -> Iterator[Transcript | DataError]:
    """Transcripts of recordings, in their order; what is wrong with a recording stands in its place.

    Recordings are read piece by piece (`read_segments`), and never more pieces are in memory than four batches have:
    those are sorted by length, so that a batch has little padding. With batches of one a transcript is given before
    the next recording is read.

    Args:
        recognizer: the model.
        files: the recordings.
        downmix: average the channels of those that have several.
        batch_size: most pieces that the model is given at once.
        longest: s, of a piece. Features are normalized over a piece as over an utterance in training, so a model that
            has heard short utterances alone wants short pieces.
    """
    room = batch_size * (_POOLED if batch_size > 1 else 1)
    waiting: list[_Recording] = []
    pool: list[tuple[_Recording, int, Segment]] = []
    for file in files:
        recording = _Recording(file)
        waiting.append(recording)
        try:
            for segment in read_segments(file, recognizer.sample_rate, downmix, longest):
                pool.append((recording, len(recording.joints), segment))
                recording.joints.append(segment.joint)
                recording.duration = segment.start + len(segment.wave) / recognizer.sample_rate
                if len(pool) == room:
                    _recognize(recognizer, pool, batch_size)
            recording.read = True
        except DataError as error:
            recording.error = error
            pool = [piece for piece in pool if piece[0] is not recording]
        yield from _finished(waiting, recognizer)
    _recognize(recognizer, pool, batch_size)
    yield from _finished(waiting, recognizer)


def _recognize(recognizer: Recognizer, pool: list[tuple[_Recording, int, Segment]], batch_size: int) -> None:
    """Empty the pool, longest pieces first."""
    pool.sort(key=lambda piece: -len(piece[2].wave))
    for first in range(0, len(pool), batch_size):
        batch = pool[first : first + batch_size]
        lens = [len(segment.wave) for _, _, segment in batch]
        wave_BS = np.zeros((len(batch), max(lens)), np.float32)
        for row, (_, _, segment) in enumerate(batch):
            wave_BS[row, : lens[row]] = segment.wave
        paths = recognizer.paths(torch.from_numpy(wave_BS), torch.tensor(lens))
        for (recording, index, segment), path in zip(batch, paths, strict=True):
            recording.texts[index] = recognizer.text(path)
            recording.words[index] = words_of(path, recognizer.alphabet, recognizer.frame_seconds, segment.start)
    pool.clear()


def _finished(waiting: list[_Recording], recognizer: Recognizer) -> Iterator[Transcript | DataError]:
    while waiting and waiting[0].done:
        recording = waiting.pop(0)
        yield recording.error or _transcript(recording, separator(recognizer.alphabet))


def _transcript(recording: _Recording, space: str) -> Transcript:
    parts: Sequence[list[Word]] = [words for _, words in sorted(recording.words.items())]
    words = join(parts, recording.joints)
    # one piece is given as it was heard, with whatever spaces the model puts around words
    text = recording.texts[0] if len(parts) == 1 else space.join(word.text for word in words)
    return Transcript(recording.file, text, words, round(recording.duration, 3))
