"""Headers are read once, and again where a recording has changed."""

import os
from pathlib import Path

import pytest
import speech_files

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.data.audio import read_header
from lightning_novograd.recipes.asr.data.cache import headers
from lightning_novograd.recipes.asr.data.cache.headers import Headers


@pytest.fixture
def opened(monkeypatch):
    """Names of the files that were opened."""
    names: list[str] = []

    def watched(audio):
        names.append(audio.name)
        return read_header(audio)

    monkeypatch.setattr(headers, "read_header", watched)
    return names


@pytest.fixture
def manifest(tmp_path):
    folder = tmp_path / "corpus"
    for i, name in enumerate("abc"):
        speech_files.write_audio(folder / f"{name}.wav", 1.0 + i)
    return folder / "m.json"


def ask(manifest, names="abc", cache_dir=None, trusted=False) -> tuple[Headers, list[float]]:
    header_of = Headers(manifest, cache_dir, trusted=trusted)
    return header_of, [header_of(manifest.parent / f"{name}.wav").seconds for name in names]


def test_a_recording_is_opened_once(manifest, opened):
    first, seconds = ask(manifest)
    assert first.save() == manifest.with_name(".m.json.headers.npz")
    assert (seconds, opened) == ([1.0, 2.0, 3.0], ["a.wav", "b.wav", "c.wav"])
    again, seconds = ask(manifest)
    assert (seconds, len(opened)) == ([1.0, 2.0, 3.0], 3)
    assert again.save() is None, "it says so already"
    status = os.stat(manifest.parent / "b.wav")
    assert again.stamp(manifest.parent / "b.wav") == (status.st_size, status.st_mtime_ns)


def test_a_recording_that_has_changed_is_opened_again_and_only_that_one(manifest, opened):
    ask(manifest, "ab")[0].save()
    speech_files.write_audio(manifest.parent / "b.wav", 0.5)
    other, seconds = ask(manifest)
    assert (seconds, opened[2:]) == ([1.0, 0.5, 3.0], ["b.wav", "c.wav"])
    other.save()
    assert ask(manifest)[1] == [1.0, 0.5, 3.0]
    assert len(opened) == 4
    speech_files.write_audio(manifest.parent / "b.wav", 0.5)
    os.utime(manifest.parent / "b.wav", (1, 1))
    ask(manifest)
    assert opened[4:] == ["b.wav"], "of the same size, but written later"


def test_another_process_has_looked(manifest, opened):
    ask(manifest)[0].save()
    speech_files.write_audio(manifest.parent / "b.wav", 0.5)
    assert ask(manifest, trusted=True)[1] == [1.0, 2.0, 3.0]
    assert len(opened) == 3


def test_a_corpus_may_move(manifest, opened):
    ask(manifest)[0].save()
    moved = manifest.parent.rename(manifest.parent.with_name("elsewhere")) / "m.json"
    assert ask(moved)[1] == [1.0, 2.0, 3.0]
    assert len(opened) == 3


def test_names_that_are_not_utf_8(manifest, opened):
    audio = manifest.parent / os.fsdecode(b"\xff\n.wav")
    (manifest.parent / "a.wav").rename(audio)
    for _ in range(2):
        header_of = Headers(manifest)
        assert header_of(audio).seconds == 1.0
        header_of.save()
    assert len(opened) == 1


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY", b"{}"])
def test_a_file_that_is_none_of_ours_is_not_used(manifest, opened, content):
    ask(manifest)[0].save()
    place = manifest.with_name(".m.json.headers.npz")
    for bad in (content, place.read_bytes()[:-100]):
        place.write_bytes(bad)
        assert ask(manifest)[1] == [1.0, 2.0, 3.0]
    assert len(opened) == 9


def test_where_the_folder_cannot_be_written(manifest, tmp_path, monkeypatch, opened):
    """Tests may run as root, whom permissions do not stop."""
    whole_file = headers.whole_file

    def refused(path):
        if path.parent == manifest.parent:
            raise PermissionError(13, "Permission denied")
        return whole_file(path)

    monkeypatch.setattr(headers, "whole_file", refused)
    assert ask(manifest)[0].save() is None
    place = ask(manifest, cache_dir=tmp_path / "cache")[0].save()
    assert place is not None
    assert place.parent == tmp_path / "cache" / "headers"
    assert ask(manifest, cache_dir=tmp_path / "cache")[1] == [1.0, 2.0, 3.0]
    assert len(opened) == 6
    (tmp_path / "full").write_text("")
    assert ask(manifest, cache_dir=tmp_path / "full")[0].save() is None


def test_what_was_found_last_counts(manifest, tmp_path, monkeypatch):
    beside, _ = ask(manifest)
    beside_place = beside.save()
    speech_files.write_audio(manifest.parent / "b.wav", 0.5)
    monkeypatch.setattr(Path, "with_name", lambda self, name: tmp_path / "no" / "such")
    (tmp_path / "no").write_text("")
    place = ask(manifest, cache_dir=tmp_path / "cache")[0].save()
    monkeypatch.undo()
    os.utime(beside_place, (1, 1))
    assert place is not None
    assert ask(manifest, cache_dir=tmp_path / "cache", trusted=True)[1] == [1.0, 0.5, 3.0]


def test_what_is_wrong_is_not_remembered(manifest):
    audio = manifest.parent / "d.wav"
    for _ in range(2):
        header_of = Headers(manifest)
        with pytest.raises(DataError, match="does not exist"):
            header_of(audio)
        assert header_of.save() is None
    speech_files.write_audio(audio, 1.0)
    assert Headers(manifest)(audio).seconds == 1.0
