"""Downloads, from a server on this machine that does what servers do."""

import hashlib
import socket
import threading

import pytest
from file_server import file_server

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.data.download import http
from lightning_novograd.recipes.asr.data.download.http import download
from lightning_novograd.recipes.asr.data.download.parallel import Stopped
from lightning_novograd.recipes.asr.data.download.source import Source, verify

CONTENT = bytes(range(256)) * 4000  # four blocks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(http, "PAUSE", 0.0)
    with file_server() as running:
        running.files["a.bin"] = CONTENT
        yield running


@pytest.fixture
def source(server):
    return Source(f"{server.url}/a.bin", SHA256, len(CONTENT))


def ranges(server):
    return [asked for _, asked in server.requests]


def test_a_file_is_fetched_once(server, source, tmp_path):
    target = tmp_path / "new" / "a.bin"
    assert download(source, target) == target
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["a.bin"]
    download(source, target)
    assert len(server.requests) == 1


def test_it_breaks_off_then_is_wrong_then_right(server, source, tmp_path):
    """The connection ends twice, the file that this makes has another checksum, the second is right."""
    server.happens["a.bin"] = [300_000, 5, bytes(len(CONTENT))]
    download(source, tmp_path / "a.bin")
    assert ranges(server) == [None, "bytes=300000-", "bytes=300005-", None]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert not (tmp_path / "a.bin.part").exists()


def test_a_part_of_an_earlier_run_is_continued(server, source, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:700_000])
    download(source, tmp_path / "a.bin")
    assert ranges(server) == ["bytes=700000-"]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_part_that_is_already_whole(server, source, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    download(source, tmp_path / "a.bin")
    assert server.requests == [], "its size is known"
    (tmp_path / "b.bin.part").write_bytes(CONTENT)
    download(Source(source.url), tmp_path / "b.bin")
    assert ranges(server) == [f"bytes={len(CONTENT)}-"], "416: there is nothing after that"


@pytest.mark.parametrize("known", [True, False], ids=["size known", "size unknown"])
def test_a_part_that_is_too_long_is_no_use(server, source, tmp_path, known):
    (tmp_path / "a.bin.part").write_bytes(CONTENT + b"more")
    download(source if known else Source(source.url), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_server_that_ignores_ranges_begins_again(server, source, tmp_path):
    server.happens["a.bin"] = [300_000, "no range"]
    download(source, tmp_path / "a.bin")
    assert ranges(server) == [None, "bytes=300000-"]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(server, source, tmp_path):
    server.happens["a.bin"] = ["status 503", "status 429"]
    download(source, tmp_path / "a.bin")
    assert len(server.requests) == 3


def test_retries_have_a_limit_and_each_new_byte_renews_it(server, source, tmp_path, monkeypatch):
    monkeypatch.setattr(http, "RETRIES", 2)
    server.happens["a.bin"] = ["status 503", "status 503", 10, "status 503", "status 503", 10] + ["status 503"] * 3
    with pytest.raises(DataError) as error:
        download(source, tmp_path / "a.bin")
    assert str(error.value) == (f"{source.url}: the server answers 503 Service Unavailable; given up after 2 retries")
    assert (tmp_path / "a.bin.part").read_bytes() == CONTENT[:20], "the next call goes on from here"
    assert len(server.requests) == 9


def test_a_file_that_is_not_there_is_no_reason_to_wait(server, tmp_path):
    with pytest.raises(DataError, match=r"/b\.bin: the server answers 404 Not Found$"):
        download(Source(f"{server.url}/b.bin"), tmp_path / "b.bin")
    assert len(server.requests) == 1
    assert not any(tmp_path.iterdir())


def test_another_file_twice_is_an_error(server, source, tmp_path):
    server.happens["a.bin"] = [bytes(len(CONTENT))] * 2
    with pytest.raises(
        DataError, match=r"what the server sends is another file: .* has sha256 [0-9a-f]{64}, but a\.bin"
    ):
        download(source, tmp_path / "a.bin")
    assert not any(tmp_path.iterdir())


def test_a_file_of_another_length_is_not_fetched_at_all(server, source, tmp_path):
    server.happens["a.bin"] = [b"<html>moved</html>"]
    with pytest.raises(DataError, match=r"/a\.bin: the server's file has 18 bytes, but a\.bin has 1024000$"):
        download(source, tmp_path / "a.bin")
    assert not any(tmp_path.iterdir())


def test_a_damaged_file_of_an_earlier_run_is_fetched_again(server, source, tmp_path):
    (tmp_path / "a.bin").write_bytes(CONTENT[:-1] + b"x")
    download(source, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_nobody_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(http, "PAUSE", 0.0)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a.bin"
    with pytest.raises(DataError, match=r"the server cannot be reached: .*; given up after 8 retries$") as error:
        download(Source(url), tmp_path / "a.bin")
    assert "\n" not in str(error.value)


def test_a_disk_that_cannot_be_written_is_no_matter_of_the_connection(server, source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"a\.bin\.part cannot be written: "):
        download(source, tmp_path / "file" / "a.bin")
    assert len(server.requests) == 1


def test_it_stops_when_it_is_told_and_keeps_what_it_has(server, source, tmp_path):
    stop = threading.Event()
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:5])
    stop.set()
    with pytest.raises(Stopped):
        download(source, tmp_path / "a.bin", stop)
    assert (tmp_path / "a.bin.part").read_bytes() == CONTENT[:5]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/a", "https://host/", "a.tar.gz", ""])
def test_addresses(url):
    with pytest.raises(ConfigError, match="must be the http or https address of a file"):
        Source(url)


def test_checksums_are_checked_for_their_form():
    with pytest.raises(ConfigError, match="sha256: must be 64 hexadecimal digits, not 'abc'"):
        Source("https://host/a", "abc")


def test_a_local_copy_is_checked_likewise(tmp_path):
    file = tmp_path / "a.bin"
    file.write_bytes(CONTENT)
    verify(file, Source("https://host/a.bin", SHA256.upper(), len(CONTENT)))
    verify(file, Source("https://host/a.bin"))
    with pytest.raises(DataError, match=r"a\.bin has 1024000 bytes, but a\.bin has 7$"):
        verify(file, Source("https://host/a.bin", SHA256, 7))
    with pytest.raises(DataError, match="has sha256"):
        verify(file, Source("https://host/a.bin", "0" * 64))
    with pytest.raises(DataError, match="cannot be read: No such file"):
        verify(tmp_path / "b.bin", Source("https://host/a.bin"))
