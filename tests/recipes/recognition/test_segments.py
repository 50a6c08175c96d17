"""Long recordings are cut where it is quiet, and no word is lost or said twice."""

import numpy as np
import pytest
import soundfile
from tone_model import RATE, ToneRecognizer, random_words, speak, write

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.data.audio import load_audio
from lightning_novograd.recipes.asr.recognition import recording, transcription
from lightning_novograd.recipes.asr.recognition.recording import read_segments
from lightning_novograd.recipes.asr.recognition.segments import LONGEST, MARGIN, Word, join, quietest, segments


def blocks_of(wave: np.ndarray, size: int = 777):
    return (wave[i : i + size] for i in range(0, len(wave), size))


@pytest.mark.parametrize("hum", [0.0, 0.3])
@pytest.mark.parametrize("longest", [5.0, 12.0, 30.0])
def test_the_pieces_are_the_recording(hum, longest):
    wave, _ = speak(random_words(150, seed=1), hum=hum)
    pieces = list(segments(blocks_of(wave), RATE, longest))
    assert len(pieces) >= len(wave) / RATE / longest
    assert max(len(piece.wave) for piece in pieces) <= longest * RATE
    assert min(len(piece.wave) for piece in pieces) >= MARGIN * RATE
    # silence needs no overlap; where there is none, a piece repeats a margin on either side of its joint
    assert {piece.joint is None for piece in pieces[1:]} == {hum == 0.0}
    joined = [np.zeros(0, np.float32)]
    for piece in pieces:
        start = piece.start if piece.joint is None else piece.joint
        assert sum(map(len, joined)) == (round(start * RATE) if piece.joint is None else round((start + MARGIN) * RATE))
        overlap = 0 if piece.joint is None else round(2 * MARGIN * RATE)
        assert round(piece.start * RATE) == sum(map(len, joined)) - overlap
        joined.append(piece.wave[overlap:])
    assert np.array_equal(np.concatenate(joined), wave)


@pytest.mark.parametrize("samples", [30_000, 30_001, 30_999, 31_000, 31_001])
def test_the_last_piece_is_never_a_snippet(samples):
    wave = np.random.default_rng(0).normal(size=samples).astype(np.float32)
    pieces = list(segments(blocks_of(wave), RATE))
    assert len(pieces) == (1 if samples <= 30_000 else 2)
    assert min(len(piece.wave) for piece in pieces) >= MARGIN * RATE


def test_the_cut_is_in_the_middle_of_the_longest_possible_pause():
    wave = np.ones(40 * RATE, np.float32)
    wave[16_000:16_400] = wave[22_000:22_400] = 0
    assert quietest(wave, RATE) == (pytest.approx(22_200, abs=60), True)
    wave[22_000:22_400] = 0.2  # 14 dB down is no silence
    assert quietest(wave, RATE) == (pytest.approx(16_200, abs=60), True)
    wave[16_000:16_400] = 0.3
    assert quietest(wave, RATE) == (pytest.approx(22_200, abs=60), False)
    assert quietest(np.zeros(40 * RATE, np.float32), RATE)[1]


def test_no_more_is_read_than_a_piece_needs():
    read = []

    def blocks():
        for _ in range(100):
            read.append(2 * RATE)
            yield np.ones(2 * RATE, np.float32)

    next(segments(blocks(), RATE))
    assert sum(read) <= (LONGEST + MARGIN + 2) * RATE


@pytest.mark.parametrize("hum", [0.0, 0.3])
@pytest.mark.parametrize("rate", [RATE, 2 * RATE])
@pytest.mark.parametrize(("batch_size", "longest"), [(1, 30.0), (3, 7.0)])
def test_a_long_recording_has_the_words_of_its_parts(tmp_path, hum, rate, batch_size, longest):
    sentences = [random_words(12, seed=seed) for seed in range(16)]
    spoken = [speak(words) for words in sentences]
    short = [write(tmp_path / f"{i}.wav", wave) for i, (wave, _) in enumerate(spoken)]
    alone = list(transcription.transcribe_files(ToneRecognizer(), short, batch_size=batch_size))
    wave, times = speak([word for words in sentences for word in words], hum=hum)
    assert len(wave) > 100 * RATE
    if rate != RATE:
        wave = np.repeat(wave, 2)
    recognizer = ToneRecognizer()
    long = write(tmp_path / "long.wav", wave, rate)
    [whole] = transcription.transcribe_files(recognizer, [long], batch_size=batch_size, longest=longest)
    assert whole.text.split() == [word for transcript in alone for word in transcript.text.split()]
    assert whole.text == " ".join(word.text for word in whole.words)
    assert whole.duration == pytest.approx(len(wave) / rate, abs=0.002)
    for word, (text, start, end) in zip(whole.words, times, strict=True):
        assert (word.text, word.start, word.end) == (
            text,
            pytest.approx(start, abs=0.045),
            pytest.approx(end, abs=0.045),
        )
    # what the model is given is bounded, however long the recording is
    assert max(rows for rows, _ in recognizer.batches) == batch_size
    assert max(samples for _, samples in recognizer.batches) <= longest * RATE


def word(text: str, start: float, end: float) -> Word:
    return Word(text, start, end, 1.0)


@pytest.mark.parametrize("shift", [-0.04, 0.0, 0.04])
@pytest.mark.parametrize("joint", [9.7, 10.0, 10.15, 10.3, 10.6])
def test_both_pieces_hear_the_overlap_and_no_word_counts_twice(shift, joint):
    left = [word("a", 9.0, 9.5), word("b", 9.6, 10.1), word("c", 10.2, 10.5), word("half", 10.8, 11.0)]
    right = [
        word("xx", 9.0, 9.3),
        *(word(w.text, w.start + shift, w.end + shift) for w in left[1:3]),
        word("d", 10.8, 12),
    ]
    joined = join([left, right], [None, joint])
    assert [w.text for w in joined] == ["a", "b", "c", "d"]


def test_words_without_a_gap_belong_to_the_piece_that_has_their_middle():
    left, right = [word("long", 8.0, 11.0)], [word("longer", 9.0, 13.0)]
    assert [w.text for w in join([left, right], [None, 10.0])] == ["long", "longer"]
    assert join([[word("a", 1, 2)], [word("b", 2, 3)]], [None, None]) == [word("a", 1, 2), word("b", 2, 3)]
    assert join([[], [word("b", 2, 3)]], [None, 2.5]) == [word("b", 2, 3)]


def test_a_short_recording_is_read_as_ever(tmp_path):
    path = write(tmp_path / "a.wav", speak(["ab"])[0], 1600)
    [piece] = read_segments(path, RATE)
    assert np.array_equal(piece.wave, load_audio(path, RATE))


def test_blocks_are_those_of_the_whole_file(tmp_path, monkeypatch):
    rng = np.random.default_rng(3)
    path = write(tmp_path / "a.wav", rng.normal(size=(40_000, 2)).astype(np.float32) * 0.1, 1300)
    whole = load_audio(path, RATE, downmix=True)
    blocks = list(recording.read_blocks(path, RATE, downmix=True))
    assert len(blocks) > 3
    assert np.concatenate(blocks) == pytest.approx(whole, abs=1e-4)
    monkeypatch.setattr(recording, "_BLOCK_SAMPLES", 100)  # whatever rate the header claims
    assert len(list(recording.read_blocks(path, RATE, downmix=True))) > 400


def test_what_cannot_be_read(tmp_path):
    wave = np.ones((40 * RATE, 2), np.float32)
    long = write(tmp_path / "stereo.wav", wave)
    with pytest.raises(DataError, match=r"stereo\.wav has 2 channels; data\.downmix=true \(--downmix\) averages them"):
        next(read_segments(long, RATE))
    assert len(list(read_segments(long, RATE, downmix=True))) == 2
    soundfile.write(str(tmp_path / "cut.flac"), wave[:, 0], RATE)
    cut = tmp_path / "cut.flac"
    cut.write_bytes(cut.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"cut\.flac is corrupt"):
        list(read_segments(cut, RATE))
    for name, problem in (("lost.wav", "does not exist"), ("text.wav", "is corrupt: Format not recognised.")):
        (tmp_path / "text.wav").write_text("no audio")
        with pytest.raises(DataError, match=f"{name} {problem}"):
            list(read_segments(tmp_path / name, RATE))
