"""Several recordings in one batch: each keeps its text, its place and its error."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from tone_model import RATE, ToneRecognizer, random_words, speak, write

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.recognition import transcription
from lightning_novograd.recipes.asr.recognition.transcription import transcribe_files


def recordings(folder: Path, sizes=(3, 40, 1, 90, 5, 2)) -> tuple[list[Path], list[str]]:
    words = [random_words(size, seed=i) for i, size in enumerate(sizes)]
    files = [write(folder / f"{i}.wav", speak(spoken)[0]) for i, spoken in enumerate(words)]
    return files, [" ".join(spoken) for spoken in words]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_every_file_has_its_own_text_in_its_place(tmp_path, batch_size):
    files, texts = recordings(tmp_path)
    recognizer = ToneRecognizer()
    transcripts = list(transcribe_files(recognizer, files, batch_size=batch_size, longest=8.0))
    assert [transcript.file for transcript in transcripts] == files
    assert [" ".join(transcript.text.split()) for transcript in transcripts] == texts
    assert [[word.text for word in transcript.words] for transcript in transcripts] == [text.split() for text in texts]
    assert max(rows for rows, _ in recognizer.batches) <= batch_size
    if batch_size > 1:  # a batch has pieces of about the same length
        assert recognizer.batches[0][1] >= recognizer.batches[-1][1]


def test_a_file_that_fails_takes_no_other_with_it(tmp_path):
    files, texts = recordings(tmp_path, sizes=(3, 60, 2))
    cut = tmp_path / "cut.flac"
    soundfile.write(str(cut), soundfile.read(files[1])[0], RATE)
    cut.write_bytes(cut.read_bytes()[:-4000])  # its first pieces are waiting when the end is missed
    lost = tmp_path / "lost.wav"
    for batch_size in (1, 4):
        given = [files[0], cut, lost, files[2]]
        first, second, third, fourth = transcribe_files(ToneRecognizer(), given, batch_size=batch_size, longest=8.0)
        assert [" ".join(t.text.split()) for t in (first, fourth)] == [texts[0], texts[2]]
        assert isinstance(second, DataError)
        assert "cut.flac is corrupt" in str(second)
        assert str(third) == f"audio file {lost} does not exist"


def test_with_batches_of_one_a_transcript_is_there_before_the_next_file_is_read(tmp_path, monkeypatch):
    files, texts = recordings(tmp_path, sizes=(3, 4))
    read = []
    original = transcription.read_segments
    monkeypatch.setattr(transcription, "read_segments", lambda file, *rest: read.append(file) or original(file, *rest))
    transcripts = transcribe_files(ToneRecognizer(), files)
    assert next(transcripts).text.split() == texts[0].split()
    assert read == files[:1]
    assert len(list(transcripts)) == 1


def test_no_more_than_four_batches_wait(tmp_path):
    files, _ = recordings(tmp_path, sizes=(400,))
    recognizer, waiting = ToneRecognizer(), []
    original = transcription._recognize

    def note(recognizer, pool, batch_size):
        waiting.append(len(pool))
        original(recognizer, pool, batch_size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transcription, "_recognize", note)
        [transcript] = transcribe_files(recognizer, files, batch_size=2, longest=6.0)
    assert max(waiting) == 8
    assert transcript.duration > 20 * 8
    assert max(samples for _, samples in recognizer.batches) <= 6 * RATE


@pytest.mark.parametrize("seconds", [2.0, 40.0], ids=["whole", "in pieces"])
def test_samples_that_are_not_finite_are_said_and_take_no_other_file_with_them(tmp_path, seconds):
    [good], [text] = recordings(tmp_path, sizes=(3,))
    wave = np.zeros(round(seconds * RATE), np.float32)
    wave[1700] = np.nan
    bad = tmp_path / "bad.wav"
    soundfile.write(bad, wave, RATE, subtype="FLOAT")
    failed, transcript = transcribe_files(ToneRecognizer(), [bad, good], longest=8.0)
    assert isinstance(failed, DataError)
    assert str(failed) == f"audio file {bad} has 1 samples that are not finite (NaN or infinity), the first at 1.700 s"
    assert " ".join(transcript.text.split()) == text


def test_a_header_of_an_absurd_rate_is_refused_however_long_it_claims_to_be(tmp_path):
    soundfile.write(tmp_path / "slow.wav", np.zeros(1000), 1)
    [failed] = transcribe_files(ToneRecognizer(), [tmp_path / "slow.wav"])
    assert "has a sample rate of 1 Hz" in str(failed)
