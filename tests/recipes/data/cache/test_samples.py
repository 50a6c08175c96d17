"""Decoded samples in one file: of this content or none, whole or not there."""

import errno
import os
import shutil
import stat
from types import SimpleNamespace

import numpy as np
import pytest

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.data.cache import files
from lightning_novograd.recipes.asr.data.cache.samples import AT_ONCE, UNUSED, SampleFile

WAVES = [np.arange(n, dtype=np.int16) - n for n in (5, 1, 9)]


def make(folder, content=("a",), writable=True) -> SampleFile:
    return SampleFile(folder / "audio" / "x.samples", list(content), writable=writable)


@pytest.mark.parametrize("count", [1, 3, AT_ONCE + 2])
def test_what_was_written_is_read(tmp_path, count):
    file = make(tmp_path)
    assert file.read() is None
    file.write(lambda i: WAVES[i % 3], count)
    ends, samples = make(tmp_path).read()
    assert samples.dtype == np.int16
    for i, wave in enumerate(np.split(samples, ends[:-1])):
        assert np.array_equal(wave, WAVES[i % 3])
    assert os.listdir(tmp_path / "audio") == ["x.samples"]
    assert os.stat(file.path).st_mode & 0o777 == 0o644


def test_other_content_takes_its_place(tmp_path):
    loads = []

    def load(i):
        loads.append(i)
        return WAVES[i]

    for content in ("a", "a", "b"):
        ends, _ = make(tmp_path, content).ensure(load, 3, 15)
        assert ends.tolist() == [5, 6, 15]
    assert sorted(loads) == [0, 0, 1, 1, 2, 2]
    assert make(tmp_path, "a").read() is None
    assert make(tmp_path, "a", writable=False).ensure(load, 3, 15) is None
    assert make(tmp_path, "b", writable=False).ensure(load, 3, 15) is not None
    assert len(loads) == 6


def test_processes_share_it_and_an_earlier_one_keeps_what_it_has(tmp_path):
    file = make(tmp_path)
    file.write(lambda i: WAVES[i], 3)
    _, samples = file.read()
    assert isinstance(samples, np.memmap)
    make(tmp_path, "b").write(lambda i: WAVES[2 - i], 3)
    assert samples.tolist() == np.concatenate(WAVES).tolist()


@pytest.mark.parametrize("keep", [0, 10, 200, -2])
def test_a_file_that_was_cut_off_is_not_used(tmp_path, keep):
    file = make(tmp_path)
    file.write(lambda i: WAVES[i], 3)
    file.path.write_bytes(file.path.read_bytes()[:keep])
    assert file.read() is None


def test_a_disk_that_is_or_gets_full(tmp_path, monkeypatch, caplog):
    file = make(tmp_path)

    def full(i):
        raise OSError(errno.ENOSPC, "No space left on device")

    assert file.ensure(full, 3, 15) is None
    assert "No space left on device" in caplog.text
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    assert file.ensure(lambda i: WAVES[i], 3, 10**9) is None
    [*_, record] = caplog.records
    assert record.getMessage() == (
        f"decoded audio is kept in the memory of each process: {file.path}: 2.0 GB are needed and 1.0 GB are free"
    )
    assert os.listdir(tmp_path / "audio") == []


def test_a_folder_that_cannot_be_made(tmp_path, caplog):
    (tmp_path / "audio").write_text("")
    assert make(tmp_path).ensure(lambda i: WAVES[i], 3, 15) is None
    assert len(caplog.records) == 1


def test_a_recording_that_cannot_be_decoded_leaves_nothing(tmp_path):
    def corrupt(i):
        raise DataError("m.json:1: a.wav is corrupt")

    with pytest.raises(DataError, match="is corrupt"):
        make(tmp_path).ensure(corrupt, 3, 15)
    assert os.listdir(tmp_path / "audio") == []


def test_what_a_killed_process_left_is_removed(tmp_path):
    for name, age in ((".partial-old", 2 * files.ABANDONED), (".partial-new", 0)):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (os.stat(tmp_path).st_mtime - age,) * 2)
    with files.whole_file(tmp_path / "a") as file:
        file.write(b"x")
    assert sorted(os.listdir(tmp_path)) == [".partial-new", "a"]


def test_sets_that_nobody_has_used_for_long_make_room_for_a_new_one(tmp_path, caplog):
    kept, old, used = (SampleFile(tmp_path / f"{name}.samples", [name], writable=True) for name in ("a", "b", "c"))
    for file in (kept, old, used):
        assert file.ensure(lambda i: WAVES[i], 3, 15) is not None
    (tmp_path / "other.txt").write_text("")
    past = os.stat(tmp_path).st_mtime - UNUSED - 60
    _, samples = old.read()
    for name in ("b.samples", "c.samples", "other.txt"):
        os.utime(tmp_path / name, (past, past))
    assert used.read() is not None  # which is a use
    with caplog.at_level("INFO", logger="lightning_novograd"):
        assert SampleFile(tmp_path / "d.samples", "d", writable=True).ensure(lambda i: WAVES[i], 3, 15) is not None
    assert sorted(os.listdir(tmp_path)) == ["a.samples", "c.samples", "d.samples", "other.txt"]
    assert caplog.messages == [f"{tmp_path}: decoded audio that was not used for 30 days is removed: 1 file, 0.0 GB"]
    assert samples.tolist() == np.concatenate(WAVES).tolist()  # whoever maps it keeps it


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_others_may_read_what_the_umask_lets_them(tmp_path, umask):
    before = os.umask(umask)
    try:
        make(tmp_path).write(lambda i: WAVES[i], 3)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "audio" / "x.samples").stat().st_mode) == 0o666 & ~umask
