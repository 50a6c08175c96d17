"""Manifests and recordings that lie or cannot be: one DataError that can be printed, never a traceback or no end."""

import io
import json
import logging
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import speech_files

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.data.audio import load_audio, read_header
from lightning_novograd.recipes.asr.data.config import DataConfig
from lightning_novograd.recipes.asr.data.manifest import read_manifest
from lightning_novograd.recipes.asr.data.module import SpeechDataModule
from lightning_novograd.recipes.asr.text.alphabet import Alphabet

ALPHABET = Alphabet(speech_files.LABELS)
GOOD = {"audio_filepath": "a.wav", "duration": 1.0, "text": "seven"}
LINE = json.dumps(GOOD)


@pytest.fixture
def folder(tmp_path):
    """With a.wav of one second."""
    speech_files.write_audio(tmp_path / "a.wav", 1.0)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param(LINE.replace("1.0", "9" * 5000), "has a number of more than", id="beyond Python's digits"),
        pytest.param(
            LINE.replace("1.0", "9" * 400), "duration must be a number of seconds, not 999", id="beyond float"
        ),
        pytest.param(LINE.replace("1.0", "1e400"), "duration must be a number of seconds, not inf", id="1e400"),
        pytest.param(LINE.replace("1.0", "1e300"), "duration is 1e+300 s, but the audio file", id="1e300"),
        pytest.param(json.dumps({**GOOD, "offset": 1e308}), "offset is 1e+308 s, but the audio file", id="offset"),
        pytest.param(json.dumps({**GOOD, "offset": 0.5, "duration": 1e-9}), "no sample of the audio", id="no sample"),
        pytest.param("[" * 100_000, "is nested too deeply", id="deep"),
        pytest.param('{"a":' * 100_000, "is nested too deeply", id="deep objects"),
        pytest.param(json.dumps({**GOOD, "audio_filepath": "x" * 5000}), "does not exist", id="long name"),
        pytest.param(json.dumps({**GOOD, "audio_filepath": "a\0b"}), "does not exist", id="zero byte"),
        pytest.param(json.dumps({**GOOD, "audio_filepath": "\ud800"}), r"\ud800 does not exist", id="half a character"),
        pytest.param(
            json.dumps({**GOOD, "audio_filepath": "~no-such-user/a"}), "/~no-such-user/a does not exist", id="no user"
        ),
        pytest.param(json.dumps({**GOOD, "text": ["x"] * 9999}), "text must be a string, not ['x'", id="long value"),
        pytest.param(json.dumps({**GOOD, "text": "\udc80"}), "which is not in the alphabet", id="half a letter"),
    ],
)
def test_lines_that_cannot_be(folder, line, message):
    path = speech_files.write_manifest(folder / "m.json", [LINE, line])
    with pytest.raises(DataError) as error:
        read_manifest(path, ALPHABET)
    said = str(error.value)
    assert said.startswith(f"{path}:2: ")
    assert message in said
    assert len(said.splitlines()) == 1
    assert len(said) < 6000
    said.encode()  # lone surrogates could not be printed


@pytest.mark.parametrize(
    "name", ["x" * 5000, "m\0.json", "~no-such-user/m.json", b"\xff.json".decode("utf-8", "surrogateescape")]
)
def test_manifests_that_cannot_be(tmp_path, name):
    with pytest.raises(DataError, match=r"^manifest ") as error:
        read_manifest(tmp_path / name, ALPHABET)
    str(error.value).encode()


def lying_flac(path: Path) -> Path:
    """Its header claims all the samples that 36 bits can count: 268 GB."""
    speech_files.write_audio(path, 2.0)
    content = bytearray(path.read_bytes())
    (word,) = struct.unpack_from(">Q", content, 18)
    struct.pack_into(">Q", content, 18, word | (2**36 - 1))
    path.write_bytes(content)
    return path


def test_a_header_that_claims_more_than_there_is(tmp_path):
    path = lying_flac(tmp_path / "a.flac")
    seconds = read_header(path).seconds
    assert seconds > 4e6
    with pytest.raises(DataError, match=r"a\.flac is corrupt: "):
        load_audio(path, 16000)
    manifest = speech_files.write_manifest(
        tmp_path / "m.json",
        [{**GOOD, "audio_filepath": "a.flac"}, {**GOOD, "audio_filepath": "a.flac", "duration": seconds}],
    )
    with pytest.raises(DataError, match=r"m\.json:1: duration is 1 s, but the audio file .* lasts 4\.29497e\+06 s"):
        read_manifest(manifest, ALPHABET)


@pytest.mark.parametrize("rate", [1, 999, 2**31 - 1])
def test_sample_rates_that_are_none(tmp_path, rate):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(400, np.int16), rate)
    for read in (read_header, lambda path: load_audio(path, 16000)):
        with pytest.raises(DataError, match=rf"a\.wav has a sample rate of {rate} Hz; it must be from 1000 to 1000000"):
            read(path)


def test_names_that_are_not_utf_8(tmp_path, caplog):
    folder = tmp_path / os.fsdecode(b"f\xe9")
    folder.mkdir()
    for path in (folder / "a.wav", folder / os.fsdecode(b"\xff.wav")):
        with pytest.raises(DataError, match=r"\\udce9") as error:
            load_audio(path, 16000)
        for encoding in ("utf-8", "ascii"):
            io.TextIOWrapper(io.BytesIO(), encoding=encoding).write(str(error.value))


def test_a_name_that_is_not_utf_8_in_the_log(tmp_path, capsys):
    """A log file is as strict as standard output."""
    speech_files.write_audio(tmp_path / "a.wav", 1.0, rate=8000)
    folder = tmp_path / os.fsdecode(b"f\xe9")
    folder.mkdir()
    path = str(folder / "m.json")
    line = json.dumps({**GOOD, "audio_filepath": str(tmp_path / "a.wav")})
    speech_files.write_manifest(Path(path), [line, line.replace("1.0", "2.0")])
    cfg = {"name": "manifest", "train": path, "dev": path, "max_duration": 1.5, "cache_audio": True}
    handler = logging.FileHandler(tmp_path / "log", encoding="utf-8")
    logger = logging.getLogger("lightning_novograd")
    logger.addHandler(handler)
    try:
        with pytest.raises(DataError):  # of the dev set, which is longer than it says
            SpeechDataModule(DataConfig.from_mapping(cfg), ALPHABET).setup("fit")
    finally:
        logger.removeHandler(handler)
        handler.close()
    assert "Logging error" not in capsys.readouterr().err
    said = [line for line in (tmp_path / "log").read_text().splitlines() if "m.json" in line]
    assert len(said) == 4
    assert all(r"/f\udce9/m.json" in line for line in said), said
