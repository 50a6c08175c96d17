"""Manifests: every line is checked when the manifest is read; bad ones are named, none is passed over."""

import json
import logging
from pathlib import Path

import pytest
import soundfile
import speech_files
import torch
from speech_files import write_audio, write_manifest

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.data.manifest import Utterance, read_manifest
from lightning_novograd.recipes.asr.text.alphabet import Alphabet

ALPHABET = Alphabet(speech_files.LABELS)
GOOD = {"audio_filepath": "a.wav", "duration": 1.0, "text": "seven"}


@pytest.fixture
def folder(tmp_path):
    """With a.wav of one second."""
    write_audio(tmp_path / "a.wav", 1.0)
    return tmp_path


def test_utterances(folder):
    write_audio(folder / "elsewhere" / "b.flac", 0.5)
    path = write_manifest(
        folder / "m.json",
        [
            {**GOOD, "speaker": "theo", "lang": None},
            "",
            {"audio_filepath": str(folder / "elsewhere" / "b.flac"), "duration": 0.5, "text": "don't", "offset": None},
        ],
    )
    first, second = read_manifest(path, ALPHABET)
    assert (first.audio, first.duration, first.text, first.offset) == (folder / "a.wav", 1.0, "seven", None)
    assert (second.audio, second.duration, second.text) == (folder / "elsewhere" / "b.flac", 0.5, "don't")
    assert first.where == f"{path}:1"
    assert second.where == f"{path}:3", "blank lines are passed over, not the lines' numbers"


def test_real_manifests_are_good(shared_data):
    utterances = read_manifest(
        shared_data / "librivox" / "manifest.json", ALPHABET, samples_to_frames=lambda n: n // 320
    )
    assert len(utterances) == 5


def without(*keys):
    return {k: v for k, v in GOOD.items() if k not in keys}


def good(**changes):
    return {**GOOD, **changes}


BAD_LINES = {
    "not JSON": ('{"audio_filepath": "a.wav", ', "is not JSON: Expecting property name"),
    "not an object": ('["a.wav", 1.0, "seven"]', "is not a JSON object but "),
    "no audio_filepath": (without("audio_filepath"), "lacks the key 'audio_filepath'; it has 'duration', 'text'"),
    "no duration": (without("duration"), "lacks the key 'duration'"),
    "no text": (without("text"), "lacks the key 'text'"),
    "no keys": ({}, "lacks the key 'audio_filepath'; it has no keys"),
    "path of a wrong type": (good(audio_filepath=3), "audio_filepath must be a path, not 3"),
    "text of a wrong type": (good(text=7), "text must be a string, not 7"),
    "duration of a wrong type": (good(duration="1.0"), "duration must be a number of seconds, not '1.0'"),
    "duration that is a bool": (good(duration=True), "duration must be a number of seconds, not True"),
    "duration that is not finite": ('{"audio_filepath": "a.wav", "duration": NaN, "text": "a"}', "not nan"),
    "duration 0": (good(duration=0), "duration must be positive, not 0"),
    "negative duration": (good(duration=-1.5), "duration must be positive, not -1.5"),
    "negative offset": (good(offset=-0.1), "offset must not be negative, but is -0.1"),
    "missing audio": (good(audio_filepath="b.wav"), "b.wav does not exist"),
    "corrupt audio": (good(audio_filepath="text.wav"), "text.wav cannot be read: "),
    "two channels": (
        good(audio_filepath="stereo.wav"),
        "stereo.wav has 2 channels; data.downmix=true",
    ),
    "longer than the audio": (good(duration=1.2), "duration is 1.2 s, but the audio file "),
    "shorter than the audio": (good(duration=0.8), "duration is 0.8 s, but the audio file "),
    "part beyond the end": (good(offset=0.5, duration=0.7), "offset and duration reach 1.2 s, but the audio file "),
    "part behind the end": (good(offset=1.02, duration=0.05), "offset is 1.02 s, but the audio file "),
    "part at the end": (good(offset=1.0, duration=0.05), "offset is 1 s, but the audio file "),
    "null": ("null", "is not a JSON object but null"),
    "no path": (good(audio_filepath=""), "audio_filepath must be a path, not ''"),
    "offset of a wrong type": (good(offset="0"), "offset must be a number of seconds, not '0'"),
    "a little longer than the audio": (good(duration=1.11), "duration is 1.11 s, but the audio file "),
    "a little shorter than the audio": (good(duration=0.89), "duration is 0.89 s, but the audio file "),
    "empty text": (good(text=""), "text is empty"),
    "blank text": (good(text="  "), "text is empty"),
    "digit": (good(text="se7en"), "text 'se7en' has '7' (U+0037) at position 2, which is not in the alphabet"),
    "upper case": (good(text="Seven"), "has 'S' (U+0053) at position 0"),
    "too short for its text": (
        good(text="x" * 26),
        f"1 s of audio give 50 output frames, but the text '{'x' * 26}' needs 51",
    ),
}


@pytest.mark.parametrize(("line", "message"), BAD_LINES.values(), ids=BAD_LINES)
def test_bad_line(folder, line, message):
    (folder / "text.wav").write_text("not audio")
    write_audio(folder / "stereo.wav", 1.0, channels=2)
    path = write_manifest(folder / "m.json", [GOOD, line, GOOD])
    with pytest.raises(DataError) as error:
        read_manifest(path, ALPHABET, samples_to_frames=lambda samples: samples // 320)
    assert str(error.value).startswith(f"{path}:2: ")
    assert message in str(error.value)


def test_frames_are_enough_exactly(folder):
    """25 equal letters need 49 frames, and 50 letters with no two equal in a row need 50."""
    for text in ("x" * 25, "ab" * 25):
        path = write_manifest(folder / "m.json", [good(text=text)])
        assert len(read_manifest(path, ALPHABET, samples_to_frames=lambda samples: samples // 320)) == 1


def test_frames_are_counted_at_the_models_rate(folder):
    write_audio(folder / "a.wav", 1.0, rate=8000)
    counted = []

    def samples_to_frames(samples):
        counted.extend(samples.tolist())
        return samples // 320

    path = write_manifest(folder / "m.json", [GOOD, good(offset=0.25, duration=0.5)])
    read_manifest(path, ALPHABET, samples_to_frames=samples_to_frames)
    assert counted == [16000, 8000]


def test_many_bad_lines_are_counted_and_the_first_quoted(folder):
    path = write_manifest(folder / "m.json", [GOOD, *([good(text="7")] * 4), *([good(audio_filepath="b.wav")] * 4)])
    with pytest.raises(DataError) as error:
        read_manifest(path, ALPHABET)
    head, *quoted, more = str(error.value).split("\n  ")
    assert head == f"8 of 9 lines of {path} are bad:"
    assert [q.removeprefix(f"{path}:").split(": ")[0] for q in quoted] == ["2", "3", "4", "5", "6"]
    assert more == "... and 3 more"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "does not exist", id="missing"),
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"\n \n", "is empty", id="blank lines only"),
        pytest.param(b"\xff\xfe\x00", "cannot be read: 'utf-8' codec", id="not text"),
    ],
)
def test_bad_manifest(tmp_path, content, message):
    path = tmp_path / "m.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"manifest {path} {message}"):
        read_manifest(path, ALPHABET)


def test_a_folder_is_no_manifest(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_manifest(tmp_path, ALPHABET)


@pytest.mark.parametrize("duration", [0.91, 0.95, 1.0, 1.05, 1.09])
def test_durations_may_be_rounded(folder, duration):
    path = write_manifest(folder / "m.json", [good(duration=duration)])
    assert read_manifest(path, ALPHABET)[0].duration == duration


def test_parts_of_a_recording(folder):
    path = write_manifest(folder / "m.json", [good(offset=0, duration=0.4), good(offset=0.4, duration=0.6)])
    assert [(u.offset, u.duration) for u in read_manifest(path, ALPHABET)] == [(0.0, 0.4), (0.4, 0.6)]


def test_several_channels_when_asked(folder):
    write_audio(folder / "a.wav", 1.0, channels=2)
    path = write_manifest(folder / "m.json", [GOOD])
    assert len(read_manifest(path, ALPHABET, downmix=True)) == 1


def test_filters_leave_out_only_when_asked_and_say_so(folder, caplog):
    for name, seconds in (("b", 2.0), ("c", 3.0)):
        write_audio(folder / f"{name}.wav", seconds)
    lines = [GOOD, good(audio_filepath="b.wav", duration=2.0), good(audio_filepath="c.wav", duration=3.0)]
    path = write_manifest(folder / "m.json", lines)
    with caplog.at_level(logging.INFO):
        assert [u.line for u in read_manifest(path, ALPHABET)] == [1, 2, 3]
        assert not caplog.records
        assert [u.line for u in read_manifest(path, ALPHABET, min_duration=1.5, max_duration=2.5)] == [2]
    assert "2 of 3 utterances are outside 1.5 to 2.5 s and are left out" in caplog.text
    with pytest.raises(DataError, match="leave none of its 3 utterances"):
        read_manifest(path, ALPHABET, min_duration=10.0)


def test_other_rates_are_said_once(folder, caplog):
    write_audio(folder / "b.wav", 1.0, rate=8000)
    path = write_manifest(folder / "m.json", [GOOD, *([good(audio_filepath="b.wav")] * 3)])
    with caplog.at_level(logging.INFO):
        read_manifest(path, ALPHABET)
    assert [r.getMessage() for r in caplog.records] == [f"{path}: audio at 8000 Hz is resampled to 16000 Hz"]


def test_text_in_any_script(tmp_path):
    soundfile.write(tmp_path / "a.wav", [0.0] * 16000, 16000)
    for row in (json.dumps({**GOOD, "text": "äß"}), json.dumps({**GOOD, "text": "äß"}, ensure_ascii=False)):
        path = write_manifest(tmp_path / "m.json", [row])
        assert read_manifest(path, Alphabet("äöüß"))[0].text == "äß"


def test_an_utterance_is_a_whole_recording_unless_said(folder):
    assert Utterance(Path("a.wav"), 1.0, "a", 1, Path("m.json")).offset is None
    path = write_manifest(folder / "m.json", [good(duration=1), good(offset=None)])
    first, second = read_manifest(path, ALPHABET)
    assert (type(first.duration), first.offset, second.offset) == (float, None, None)


def test_audio_may_begin_at_home(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    path = write_manifest(folder / "m.json", [good(audio_filepath="~/a.wav")])
    assert read_manifest(path, ALPHABET)[0].audio == folder / "a.wav"


@pytest.mark.parametrize(
    ("limits", "kept", "said"),
    [
        ({"min_duration": 1.0, "max_duration": 1.0}, [1], "1 of 2 utterances are outside 1 to 1 s and are left out"),
        ({"max_duration": 1.5}, [1], "1 of 2 utterances are outside 0 to 1.5 s and are left out"),
        ({"min_duration": 1.5}, [2], "1 of 2 utterances are outside 1.5 to inf s and are left out"),
        ({"min_duration": 0.0}, [1, 2], None),
    ],
)
def test_limits_are_durations_that_are_kept(folder, caplog, limits, kept, said):
    write_audio(folder / "b.wav", 2.0)
    path = write_manifest(folder / "m.json", [GOOD, good(audio_filepath="b.wav", duration=2.0)])
    with caplog.at_level(logging.INFO):
        assert [u.line for u in read_manifest(path, ALPHABET, **limits)] == kept
    assert [record.getMessage() for record in caplog.records] == ([f"{path}: {said}"] if said else [])


def test_audio_that_is_left_out_need_not_be_good(folder):
    path = write_manifest(folder / "m.json", [GOOD, good(audio_filepath="lost.wav", duration=9.0)])
    assert len(read_manifest(path, ALPHABET, max_duration=5.0)) == 1


def test_all_other_rates_are_said(folder, caplog):
    for name, rate in (("b", 22050), ("c", 8000), ("d", 16000)):
        write_audio(folder / f"{name}.wav", 1.0, rate=rate)
    path = write_manifest(folder / "m.json", [good(audio_filepath=f"{name}.wav") for name in "bcd"])
    with caplog.at_level(logging.INFO):
        read_manifest(path, ALPHABET, sample_rate=44100)
        read_manifest(path, ALPHABET)
    heard = [record.getMessage().partition("audio at ")[2] for record in caplog.records]
    assert heard == ["8000, 16000, 22050 Hz is resampled to 44100 Hz", "8000, 22050 Hz is resampled to 16000 Hz"]


def test_frames_of_a_part_that_ends_with_the_recording(folder):
    counted = []

    def samples_to_frames(samples):
        assert samples.dtype == torch.int64
        counted.extend(samples.tolist())
        return samples

    path = write_manifest(folder / "m.json", [good(offset=0.5, duration=0.55), good(offset=0.0, duration=0.25), GOOD])
    read_manifest(path, ALPHABET, samples_to_frames=samples_to_frames, sample_rate=8000)
    assert counted == [4000, 2000, 8000]


@pytest.mark.parametrize("count", [2, 5])
def test_bad_lines_are_all_quoted_up_to_five(folder, count):
    path = write_manifest(folder / "m.json", [GOOD, *([good(text="7")] * count)])
    with pytest.raises(DataError) as error:
        read_manifest(path, ALPHABET)
    head, *quoted = str(error.value).split("\n  ")
    assert head == f"{count} of {count + 1} lines of {path} are bad:"
    assert [q.split(": ")[0] for q in quoted] == [f"{path}:{line}" for line in range(2, count + 2)]
