"""What comes out of an archive, and what does not."""

import io
import tarfile
import threading

import pytest

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.data.download.archive import unpacked
from lightning_novograd.recipes.asr.data.download.parallel import Stopped


def member(name, kind=tarfile.REGTYPE, **attributes):
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


def archive_of(path, *members, content=b"hello"):
    with tarfile.open(path, "w:gz") as tar:
        for info in members:
            if info.isreg():
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return path


def test_files_and_folders(tmp_path):
    archive = archive_of(
        tmp_path / "a.tar.gz", member("a", tarfile.DIRTYPE, mode=0o755), member("a/b.txt", mode=0o4777)
    )
    with unpacked(archive, tmp_path / "new") as folder:
        assert folder.parent == tmp_path / "new"
        assert (folder / "a" / "b.txt").read_text() == "hello"
        assert (folder / "a" / "b.txt").stat().st_mode & 0o7022 == 0, "nobody else writes, nothing runs as another user"
        (folder / "a").rename(tmp_path / "kept")
    assert not any((tmp_path / "new").iterdir())
    assert (tmp_path / "kept" / "b.txt").exists()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (member("../evil"), "'../evil' may lead out of the folder"),
        (member("a/../../evil"), "'a/../../evil' may lead out"),
        (member("/evil"), "'/evil' may lead out"),
        (member("C:/evil"), "'C:/evil' may lead out"),
        (member("a\\..\\evil"), "may lead out"),
        (member("link", tarfile.SYMTYPE, linkname="/etc/passwd"), "'link' is neither a file nor a folder"),
        (member("link", tarfile.LNKTYPE, linkname="a/b.txt"), "'link' is neither"),
        (member("null", tarfile.CHRTYPE, devmajor=1, devminor=3), "'null' is neither"),
        (member("disk", tarfile.BLKTYPE), "'disk' is neither"),
        (member("pipe", tarfile.FIFOTYPE), "'pipe' is neither"),
    ],
    ids=["up", "up later", "absolute", "drive", "backslash", "symlink", "hard link", "device", "disk", "pipe"],
)
def test_what_is_refused(tmp_path, bad, message):
    archive = archive_of(tmp_path / "a.tar.gz", member("a/b.txt"), bad)
    with pytest.raises(DataError) as error, unpacked(archive, tmp_path / "new"):
        pytest.fail("it was unpacked")
    assert str(error.value).startswith(f"{archive} is refused: ")
    assert message in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar.gz", "new"}
    assert not any((tmp_path / "new").iterdir()), "of the good members too, nothing is left"


@pytest.mark.parametrize("damage", ["cut", "checksum", "no gzip", "no tar"])
def test_damaged_archives(tmp_path, damage):
    archive = archive_of(tmp_path / "a.tar.gz", member("a.txt"), content=bytes(range(256)) * 100)
    content = bytearray(archive.read_bytes())
    if damage == "cut":
        content = content[:-20]
    elif damage == "checksum":
        content[-6] ^= 1
    elif damage == "no gzip":
        content = b"<html>not found</html>"
    else:
        import gzip

        content = gzip.compress(b"no tar at all" * 100)
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.tar\.gz is corrupt: ") as error, unpacked(archive, tmp_path):
        pytest.fail("it was unpacked")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_there_is_no_archive(tmp_path):
    with (
        pytest.raises(DataError, match=r"cannot be unpacked into .*: No such file"),
        unpacked(tmp_path / "b", tmp_path),
    ):
        pytest.fail("it was unpacked")


def test_it_stops(tmp_path):
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped), unpacked(archive_of(tmp_path / "a.tar.gz", member("a.txt")), tmp_path, stop):
        pytest.fail("it was unpacked")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]
