"""AN4, made of an archive with some noise in the right layout."""

import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
import soundfile
from file_server import file_server

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.data.corpora import an4, prepare_corpus
from lightning_novograd.recipes.asr.data.download import http
from lightning_novograd.recipes.asr.data.manifest import read_manifest
from lightning_novograd.recipes.asr.prepare import main
from lightning_novograd.recipes.asr.text.alphabet import Alphabet

TRAIN = {
    "<s> HELLO </s> (an1-fash-b)": 800,
    "<s> ERASE O P FIVE </s> (cen2-fash-b)": 1600,
    "<s> YES </s> (an1-mjwl-b)": 900,
    "<s> P O BOX </s> (an2-mjwl-b)": 1000,
    "<s> GO </s> (an3-fcaw-b)": 1100,
}
TEST = {"RUBOUT G M E F THREE NINE (an391-mmxg-b)": 1200, "NO (an392-mmxg-b)": 700}


def samples(length):
    return np.random.default_rng(length).integers(-3000, 3000, length, dtype=np.int16)


def sphere(length):
    """As the corpus has them: 1024 bytes of header, then plain samples, here big-endian."""
    fields = [
        "NIST_1A",
        "   1024",
        "database_id -s3 AN4",
        "channel_count -i 1",
        f"sample_count -i {length}",
        "sample_rate -i 16000",
        "sample_n_bytes -i 2",
        "sample_byte_format -s2 10",
        "sample_sig_bits -i 16",
        "sample_coding -s3 pcm",
        "end_head",
    ]
    return ("\n".join(fields) + "\n").encode().ljust(1024) + samples(length).astype(">i2").tobytes()


def members(suffix=".sph"):
    files = {}
    for split, folder, lines in (("train", "an4_clstk", TRAIN), ("test", "an4test_clstk", TEST)):
        files[f"an4/etc/an4_{split}.transcription"] = "".join(f"{line}\n" for line in lines).encode()
        for line, length in lines.items():
            name = line.rpartition("(")[2].rstrip(")")
            files[f"an4/wav/{folder}/{name.split('-')[1]}/{name}{suffix}"] = sphere(length)
    return files


def archive(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(an4, "UTTERANCES", {"train": 5, "test": 2})
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(http, "PAUSE", 0.0)
    with file_server() as running:
        running.files["an4_sphere.tar.gz"] = archive(members())
        yield running


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_is_downloaded_converted_and_dealt(server, tmp_path, capsys):
    server.happens["an4_sphere.tar.gz"] = [100]
    folder = tmp_path / "an4"
    url = f"url={server.url}/an4_sphere.tar.gz"
    assert main(["an4", "--out", str(folder), url, "dev_size=1"]) == 0
    assert f"test: 2 utterances in {folder}/test.json" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"an4", ".an4.lock"}, "the archive is not kept"
    train, dev, test = (rows(folder / f"{split}.json") for split in ("train", "dev", "test"))
    assert test[0] == {
        "audio_filepath": "audio/an391-mmxg-b.flac",
        "duration": 1200 / 16000,
        "text": "rubout g m e f three nine",
        "speaker": "mmxg",
    }
    assert sorted(row["text"] for row in train + dev) == ["erase o p five", "go", "hello", "p o box", "yes"]
    assert len({row["speaker"] for row in dev}) == 1
    assert not {row["speaker"] for row in dev} & {row["speaker"] for row in train}, "nobody is heard in both"
    pcm, rate = soundfile.read(folder / "audio" / "cen2-fash-b.flac", dtype="int16")
    assert rate == 16000
    assert np.array_equal(pcm, samples(1600))
    assert len(read_manifest(folder / "train.json", Alphabet("abcdefghijklmnopqrstuvwxyz' "))) == len(train)
    assert main(["an4", "--out", str(folder), url, "dev_size=1"]) == 0
    assert len(server.requests) == 2


def test_training_makes_it_where_it_is_missing(server, tmp_path):
    given = {"url": f"{server.url}/an4_sphere.tar.gz", "dev_size": 3}
    made = prepare_corpus("an4", cache_dir=tmp_path, **given)
    assert prepare_corpus("an4", cache_dir=tmp_path, **given) == made
    assert len(rows(made.dev)) >= 3
    assert len(server.requests) == 1


def test_local_copies(server, tmp_path):
    file = tmp_path / "an4_sphere.tar.gz"
    file.write_bytes(server.files["an4_sphere.tar.gz"])
    with tarfile.open(file) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    roots = [tmp_path, file, tmp_path / "unpacked", tmp_path / "unpacked" / "an4"]
    made = [prepare_corpus("an4", root, tmp_path / f"cache{i}", dev_size=1) for i, root in enumerate(roots)]
    assert len({manifests.train.read_text() for manifests in made}) == 1
    assert len({manifests.dev.parent.name for manifests in made}) == 1, "one fingerprint: the same corpus"
    assert file.exists()
    assert server.requests == []
    with pytest.raises(DataError, match=r"there is neither an4_sphere\.tar\.gz nor an4/etc in .*/nothing"):
        prepare_corpus("an4", tmp_path / "nothing", tmp_path / "cache")
    with pytest.raises(DataError, match=r"there is neither an4_sphere\.tar\.gz nor an4/etc in x+; leave root out"):
        prepare_corpus("an4", "x" * 300, tmp_path / "cache")


def test_a_checksum_can_be_given(server, tmp_path):
    content = server.files["an4_sphere.tar.gz"]
    url = f"{server.url}/an4_sphere.tar.gz"
    prepare_corpus("an4", cache_dir=tmp_path / "a", url=url, dev_size=1, sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(DataError, match="what the server sends is another file"):
        prepare_corpus("an4", cache_dir=tmp_path / "b", url=url, dev_size=1, sha256="0" * 64)


TRANSCRIPTION = "an4/etc/an4_test.transcription"
RECORDING = "an4/wav/an4test_clstk/mmxg/an392-mmxg-b.sph"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (TRANSCRIPTION, None, r"an4_test\.transcription cannot be read"),
        (TRANSCRIPTION, b"NO (an1)\n", r":1: is no line such as"),
        (TRANSCRIPTION, b"NO (an392-mmxg-b)\n", "has 1 of 2 utterances"),
        (RECORDING, None, r"an392-mmxg-b\.sph is missing: an4_sphere\.tar\.gz has it$"),
        (RECORDING, b"x" * 99, "cannot be read"),
        (RECORDING, sphere(9)[:1024], "cannot be read|must be mono and not empty"),
        (RECORDING, sphere(9).replace(b"-s3 pcm\n", b"-s26 pcm,embedded-shorten-v2.00\n"), "cannot be read"),
    ],
    ids=["no transcription", "no line", "too few", "no recording", "no audio", "no samples", "compressed"],
)
def test_what_is_wrong_with_an_archive(server, tmp_path, name, content, message):
    files = members() | {name: content}
    if content is None:
        del files[name]
    server.files["an4_sphere.tar.gz"] = archive(files)
    with pytest.raises(DataError, match=message) as error:
        prepare_corpus("an4", cache_dir=tmp_path, url=f"{server.url}/an4_sphere.tar.gz", dev_size=1)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("an4/*/train.json"))


def test_the_archive_without_headers_is_named(server, tmp_path):
    server.files["an4_sphere.tar.gz"] = archive(members(".raw"))
    with pytest.raises(DataError, match=r"an4_sphere\.tar\.gz has it; the archive of \.raw files has no headers"):
        prepare_corpus("an4", cache_dir=tmp_path, url=f"{server.url}/an4_sphere.tar.gz", dev_size=1)
