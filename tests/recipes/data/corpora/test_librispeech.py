"""LibriSpeech, made of archives with some noise in the right layout."""

import hashlib
import io
import json
import shutil
import tarfile

import numpy as np
import pytest
import soundfile
from file_server import file_server

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.data.corpora import librispeech, prepare_corpus
from lightning_novograd.recipes.asr.data.corpora.librispeech import PARTS, LibriSpeechOptions, Part
from lightning_novograd.recipes.asr.data.download import http
from lightning_novograd.recipes.asr.data.manifest import read_manifest
from lightning_novograd.recipes.asr.prepare import main
from lightning_novograd.recipes.asr.text.alphabet import Alphabet

SPEAKERS = {name: 100 + i for i, name in enumerate(PARTS)}
ALPHABET = Alphabet("abcdefghijklmnopqrstuvwxyz' ")


def flac(samples):
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.random.default_rng(samples).standard_normal(samples), 16000, format="FLAC")
    return file.getvalue()


def members(name):
    """Two chapters of a speaker, with two utterances and one."""
    speaker = SPEAKERS[name]
    files = {"LibriSpeech/LICENSE.TXT": b"CC BY 4.0"}
    for chapter, lengths in ((7, (1600, 2401)), (12, (3200,))):
        folder = f"LibriSpeech/{name}/{speaker}/{chapter}/{speaker}-{chapter}"
        lines = []
        for i, samples in enumerate(lengths):
            files[f"{folder}-{i:04d}.flac"] = flac(samples)
            lines.append(f"{speaker}-{chapter}-{i:04d} IT'S {'ABC'[i]} {name.partition('-')[0].upper()}\n")
        files[f"{folder}.trans.txt"] = "".join(lines).encode()
    return files


def archive(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture(scope="module")
def archives():
    return {name: archive(members(name)) for name in PARTS}


@pytest.fixture
def tiny(archives, monkeypatch):
    """Parts of three utterances each."""
    parts = {name: Part(3, len(data), hashlib.sha256(data).hexdigest()) for name, data in archives.items()}
    monkeypatch.setattr(librispeech, "PARTS", parts)
    return archives


@pytest.fixture
def server(tiny, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(http, "PAUSE", 0.0)
    with file_server() as running:
        running.files.update({f"{name}.tar.gz": data for name, data in tiny.items()})
        yield running


@pytest.fixture
def unpacked(tiny, tmp_path):
    """A folder with everything unpacked, as others have it."""
    root = tmp_path / "corpora"
    for data in tiny.values():
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            tar.extractall(root, filter="data")
    return root


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_parts_are_those_of_the_publication():
    hours = {"train-clean-100": 100.6, "train-clean-360": 363.6, "train-other-500": 496.7}
    assert sum(PARTS[name].utterances for name in hours) == 281241
    assert sum(part.utterances for part in PARTS.values()) == 292367
    for name, value in hours.items():
        assert PARTS[name].size / value == pytest.approx(62.5e6, rel=0.03), "bytes of FLAC per hour"
    assert all(len(part.sha256) == 64 for part in PARTS.values())
    assert list(librispeech.TRAIN) == list(hours)


def test_everything_is_downloaded_checked_unpacked_and_listed(server, tmp_path, capsys):
    """One download breaks off, one is wrong first."""
    server.happens["dev-clean.tar.gz"] = [100]
    server.happens["test-other.tar.gz"] = [bytes(len(server.files["test-other.tar.gz"]))]
    folder = tmp_path / "libri"
    assert main(["librispeech", "--out", str(folder), f"mirror={server.url}"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        f"train: 9 utterances in {folder}/train-clean-100+clean-360+other-500.json",
        f"dev: 3 utterances in {folder}/dev-clean.json",
        f"test: 3 utterances in {folder}/test-clean.json",
        f"dev-other: 3 utterances in {folder}/dev-other.json",
        f"test-other: 3 utterances in {folder}/test-other.json",
        f"train with: data=librispeech data.root={folder}",
    ]
    assert {path.name for path in folder.iterdir()} == {
        ".prepare.lock",
        "LibriSpeech",
        *(f"{name}.json" for name in PARTS),
        "train-clean-100+clean-360+other-500.json",
    }, "archives and temporary folders are gone"
    assert {path.name for path in (folder / "LibriSpeech").iterdir()} == {*PARTS, "LICENSE.TXT"}
    assert rows(folder / "dev-clean.json") == [
        {
            "audio_filepath": f"LibriSpeech/dev-clean/103/{name}",
            "duration": samples / 16000,
            "text": text,
            "speaker": "103",
        }
        for name, samples, text in [
            ("12/103-12-0000.flac", 3200, "it's a dev"),
            ("7/103-7-0000.flac", 1600, "it's a dev"),
            ("7/103-7-0001.flac", 2401, "it's b dev"),
        ]
    ]
    speakers = [row["speaker"] for row in rows(folder / "train-clean-100+clean-360+other-500.json")]
    assert speakers == ["100"] * 3 + ["101"] * 3 + ["102"] * 3
    asked = len(server.requests)
    assert main(["librispeech", "--out", str(folder), f"mirror={server.url}"]) == 0
    assert len(server.requests) == asked, "what is there stays"


def test_it_is_trained_on_where_it_lies_and_moves_as_a_whole(server, tmp_path):
    main(["librispeech", "--out", str(tmp_path / "libri"), f"mirror={server.url}"])
    (tmp_path / "libri").rename(tmp_path / "moved")
    manifests = prepare_corpus("librispeech", tmp_path / "moved", tmp_path / "cache")
    assert manifests.dev == tmp_path / "moved" / "dev-clean.json"
    assert len(read_manifest(manifests.train, ALPHABET)) == 9
    assert not (tmp_path / "cache").exists()


def test_what_an_interrupted_call_left_is_used(server, tmp_path, capsys):
    parts = ["train=[train-clean-100]", "also=[]", f"mirror={server.url}"]
    server.happens["test-clean.tar.gz"] = ["status 404"]
    assert main(["librispeech", "--out", str(tmp_path), *parts, "jobs=1"]) == 1
    assert capsys.readouterr().err == f"error: {server.url}/test-clean.tar.gz: the server answers 404 Not Found\n"
    assert (tmp_path / "LibriSpeech" / "dev-clean").is_dir()
    assert not (tmp_path / "train.json").exists()
    assert main(["librispeech", "--out", str(tmp_path), *parts]) == 0
    assert [name for name, _ in server.requests] == [
        *(f"{name}.tar.gz" for name in ("train-clean-100", "dev-clean", "test-clean", "test-clean"))
    ]
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"train with: data=librispeech data.root={tmp_path} 'data.train=[train-clean-100]'"
    )


def test_local_archives_are_checked_and_kept(tiny, tmp_path, capsys):
    root = tmp_path / "archives"
    root.mkdir()
    for name, data in tiny.items():
        (root / f"{name}.tar.gz").write_bytes(data)
    arguments = ["librispeech", "--root", str(root), "--out", str(tmp_path / "libri")]
    (root / "dev-other.tar.gz").write_bytes(bytes(len(tiny["dev-other"])))
    assert main(arguments) == 1
    printed = capsys.readouterr().err
    assert f"{root}/dev-other.tar.gz has sha256 " in printed
    assert printed.count("\n") == 1
    (root / "dev-other.tar.gz").write_bytes(tiny["dev-other"])
    assert main(arguments) == 0
    assert len(list(root.iterdir())) == 7
    (root / "test-other.tar.gz").unlink()
    assert main(["librispeech", "--root", str(root), "--out", str(tmp_path / "again")]) == 1
    assert capsys.readouterr().err == (
        f"error: there is neither test-other.tar.gz nor LibriSpeech/test-other in {root}; leave root out to download\n"
    )


def test_a_local_folder_is_used_where_it_lies(unpacked, tmp_path):
    assert main(["librispeech", "--root", str(unpacked / "LibriSpeech"), "--out", str(tmp_path / "libri")]) == 0
    assert not (tmp_path / "libri" / "LibriSpeech").exists()
    [first, *_] = rows(tmp_path / "libri" / "test-other.json")
    assert first["audio_filepath"] == f"{unpacked}/LibriSpeech/test-other/106/12/106-12-0000.flac"


def test_training_takes_any_unpacked_copy(unpacked, tmp_path):
    cache = tmp_path / "cache"
    made = prepare_corpus("librispeech", unpacked, cache, train=["train-clean-100", "train-other-500"], test=None)
    assert made.test is None
    assert made.train.name == "train-clean-100+other-500.json"
    assert len(read_manifest(made.train, ALPHABET)) == 6
    alone = prepare_corpus("librispeech", unpacked, cache, train="train-clean-100", test="test-other")
    assert alone.train == made.train.with_name("train-clean-100.json")
    stamp = made.train.stat().st_mtime_ns
    prepare_corpus("librispeech", unpacked, cache, train=["train-clean-100", "train-other-500"], test=None)
    assert made.train.stat().st_mtime_ns == stamp
    assert not list(unpacked.glob("*.json")), "it may be read-only"


def test_an_incomplete_copy_is_refused(unpacked, tmp_path):
    (unpacked / "LibriSpeech" / "dev-clean" / "103" / "12" / "103-12.trans.txt").unlink()
    with pytest.raises(DataError, match=r"dev-clean has 2 of 3 utterances: unpack dev-clean\.tar\.gz again"):
        prepare_corpus("librispeech", unpacked, tmp_path)
    shutil.rmtree(unpacked / "LibriSpeech" / "dev-clean")
    with pytest.raises(DataError, match=r"lacks dev-clean \(looked for .*/LibriSpeech/dev-clean\)"):
        prepare_corpus("librispeech", unpacked, tmp_path)


@pytest.mark.parametrize("line", ["", "103-12-0000", "1-2-0000 HELLO", "103-12-../x HELLO"])
def test_a_transcript_that_is_none(unpacked, tmp_path, line):
    file = unpacked / "LibriSpeech" / "dev-clean" / "103" / "12" / "103-12.trans.txt"
    file.write_text(line + "\n")
    with pytest.raises(DataError, match=r"103-12\.trans\.txt:1: is no line of the chapter's transcript"):
        prepare_corpus("librispeech", unpacked, tmp_path)


def test_what_cannot_be_read_or_written_is_one_line(unpacked, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"train-clean-100\.json: cannot be written: Not a directory$"):
        prepare_corpus("librispeech", unpacked, tmp_path / "file")
    with pytest.raises(DataError, match=r"lacks train-clean-100, "):
        prepare_corpus("librispeech", "x" * 300, tmp_path)
    assert main(["librispeech", "--root", "x" * 300, "--out", str(tmp_path / "out")]) == 1
    (unpacked / "LibriSpeech" / "dev-clean" / "103" / "12" / "103-12.trans.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"103-12\.trans\.txt cannot be read: "):
        prepare_corpus("librispeech", unpacked, tmp_path)


def test_a_recording_that_is_missing(unpacked, tmp_path):
    (unpacked / "LibriSpeech" / "dev-clean" / "103" / "12" / "103-12-0000.flac").unlink()
    with pytest.raises(DataError, match=r"103-12-0000\.flac does not exist"):
        prepare_corpus("librispeech", unpacked, tmp_path)
    assert not list(tmp_path.glob("librispeech/*/dev-clean.json"))


def test_training_does_not_fetch_60_gigabytes_in_passing(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.root: is missing: give FOLDER of python -m .*\.prepare librispeech"):
        prepare_corpus("librispeech", cache_dir=tmp_path)


def test_a_disk_that_is_too_small(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(librispeech.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1, 1, 1000))
    assert main(["librispeech", "--out", str(tmp_path), f"mirror={server.url}"]) == 1
    assert f"error: {tmp_path} has 0.0 GB free, but LibriSpeech needs 0.0 GB more" in capsys.readouterr().err
    assert server.requests == []


def test_room_for_archives_that_are_there_is_not_asked_twice(tmp_path, monkeypatch):
    size = PARTS["train-other-500"].size
    for free, fails in ((2 * size - 8, False), (2 * size - 9, True)):
        monkeypatch.setattr(
            librispeech.shutil, "disk_usage", lambda folder, free=free: shutil._ntuple_diskusage(free, 0, free)
        )
        (tmp_path / "train-other-500.tar.gz.part").write_bytes(b"12345678")
        if fails:
            with pytest.raises(DataError, match=r"has 61\.2 GB free, but LibriSpeech needs 61\.2 GB more"):
                librispeech.check_room(tmp_path, ["train-other-500"], jobs=3)
        else:
            librispeech.check_room(tmp_path, ["train-other-500"], jobs=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"train": ["train-clean-10"]},
            "data.train: there is no part 'train-clean-10'; did you mean 'train-clean-100'?",
        ),
        ({"train": []}, "data.train: names no part"),
        ({"train": ["train-clean-100"] * 2}, "data.train: names a part twice"),
        ({"also": "dev-otter"}, "data.also: there is no part 'dev-otter'; did you mean 'dev-other'?"),
        ({"dev": "dev"}, "data.dev: 'dev' is unknown"),
        ({"train": ["dev-clean"]}, "data.dev: dev-clean is trained on"),
        ({"jobs": 0}, "data.jobs: must be at least 1"),
    ],
)
def test_options(options, message):
    with pytest.raises(ConfigError) as error:
        LibriSpeechOptions.read(options, "data")
    assert str(error.value).startswith(message)
