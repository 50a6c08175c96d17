"""Corpora by name, and folders that are complete or not there."""

import contextlib
import errno
import json
import os
import stat
import threading
from pathlib import Path

import pytest
import soundfile

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.data.corpora import Manifests, available_corpora, base, get_corpus, prepare_corpus
from lightning_novograd.recipes.asr.data.corpora.base import CORPORA, STAMP, cache_folder, prepare_in
from lightning_novograd.recipes.common.data.workers import workers
from lightning_novograd.recipes.common.section import Section

FINGERPRINT = {"corpus": "toy", "version": 1}


def build(folder):
    for split in ("train", "dev", "test"):
        (folder / f"{split}.json").write_text(split)


def test_names():
    assert available_corpora() == ["an4", "espeak_digits", "fsdd", "librispeech", "manifest"]


def test_own_manifests_are_taken_as_they_are(tmp_path):
    made = prepare_corpus("manifest", cache_dir=tmp_path, train="a.json", dev="~/b.json")
    assert made.train.name == "a.json"
    assert made.dev.is_absolute(), "~ is the home folder"
    assert made.test is None
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fsd", {}, "unknown corpus 'fsd'; did you mean 'fsdd'?"),
        ("fsdd", {"root": "x", "trainsize": 3}, "data.trainsize: unknown key; did you mean 'train_size'?"),
        ("fsdd", {}, "data.root: is missing: give a clone of https://github.com/"),
        ("manifest", {"train": "x.json"}, "data.dev: is missing: give the path of a manifest"),
        ("espeak_digits", {"letters": 2.0}, "data.letters: must be at most 1.0, not 2.0"),
    ],
    ids=["name", "option", "root", "dev", "range"],
)
def test_errors(tmp_path, name, options, message):
    with pytest.raises(ConfigError) as error:
        prepare_corpus(name, cache_dir=tmp_path, **options)
    assert message in str(error.value)


def test_a_corpus_is_built_once(tmp_path):
    built = []

    def counting_build(folder):
        built.append(folder)
        build(folder)

    for _ in range(2):
        made = prepare_in(tmp_path / "toy", FINGERPRINT, counting_build)
    assert made == Manifests(*(tmp_path / "toy" / f"{split}.json" for split in ("train", "dev", "test")))
    assert made.dev.read_text() == "dev"
    assert len(built) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_an_interrupted_build_leaves_nothing(tmp_path):
    def interrupted(folder):
        build(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_in(tmp_path / "toy", FINGERPRINT, interrupted)
    assert not any(tmp_path.iterdir())
    prepare_in(tmp_path / "toy", FINGERPRINT, build)


def test_of_two_machines_that_build_at_the_same_time_one_wins_and_both_are_right(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "locked", contextlib.nullcontext)
    both_are_building = threading.Barrier(2, timeout=20)
    results = []

    def slow_build(folder):
        build(folder)
        both_are_building.wait()

    def prepare():
        results.append(prepare_in(tmp_path / "toy", FINGERPRINT, slow_build))

    threads = [threading.Thread(target=prepare) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert results[0] == results[1]
    assert results[0].train.read_text() == "train"
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_of_two_processes_of_a_machine_one_builds(tmp_path):
    built = []

    def slow_build(folder):
        built.append(folder)
        threading.Event().wait(0.05)
        build(folder)

    threads = [threading.Thread(target=prepare_in, args=(tmp_path / "toy", FINGERPRINT, slow_build)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_others_may_read_what_the_umask_lets_them(tmp_path, umask):
    before = os.umask(umask)
    try:
        prepare_in(tmp_path / "toy", FINGERPRINT, build)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "toy").stat().st_mode) == 0o777 & ~umask


def test_other_files_are_not_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="exists and is not this corpus"):
        prepare_in(tmp_path, FINGERPRINT, build)
    prepare_in(tmp_path / "toy", FINGERPRINT, build)
    with pytest.raises(ConfigError, match="exists and is not this corpus"):
        prepare_in(tmp_path / "toy", {**FINGERPRINT, "version": 2}, build)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="exists and is not this corpus"):
        prepare_in(tmp_path / "file", FINGERPRINT, build)


def test_every_fingerprint_has_its_own_cache(tmp_path):
    folders = {cache_folder(tmp_path, "toy", {"version": version}) for version in (1, 2)}
    assert len(folders) == 2
    assert cache_folder(tmp_path, "toy", {"a": 1, "b": 2}) == cache_folder(tmp_path, "toy", {"b": 2, "a": 1})
    # that of a corpus which was made before is found again
    assert cache_folder(tmp_path, "toy", {"b": 1, "a": 2}) == tmp_path / "toy" / "21501dbaf73f5223"


def test_a_corpus_is_made_beside_its_folder_which_everybody_may_read(tmp_path):
    seen = []

    def watched(folder):
        seen.append((folder.parent, folder.name[:5]))
        build(folder)

    folder = tmp_path / "a" / "b" / "toy"
    prepare_in(folder, FINGERPRINT, watched)
    assert seen == [(folder.parent, ".toy-")]
    assert folder.stat().st_mode & 0o777 == 0o755
    assert (folder / "corpus.json").read_text() == '{"corpus": "toy", "version": 1}\n'
    prepare_in(folder, dict(reversed(FINGERPRINT.items())), watched)
    (tmp_path / "empty").mkdir()
    assert prepare_in(tmp_path / "empty", FINGERPRINT, watched).dev.read_text() == "dev"
    assert len(seen) == 2


def test_the_cache_is_at_home_unless_said(tmp_path, monkeypatch):
    asked = []

    class Toy:
        options = Section

        def prepare(self, options, cache_dir):
            asked.append(cache_dir)

    monkeypatch.setitem(CORPORA, "toy", Toy())
    monkeypatch.setenv("HOME", str(tmp_path))
    prepare_corpus("toy")
    prepare_corpus("toy", cache_dir="~/mine")
    assert asked == [tmp_path / ".cache" / "lightning_novograd", tmp_path / "mine"]
    assert get_corpus("toy") is CORPORA["toy"]


def test_an_unknown_corpus_is_named_with_the_key():
    for path, given in (("data.name", {}), ("x", {"path": "x"})):
        with pytest.raises(ConfigError) as error:
            get_corpus("nothing", **given)
        assert error.value.path == path


def test_manifests_of_ones_own_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    made = prepare_corpus("manifest", train="~/a.json", dev="~/b.json", test="~/c.json")
    assert made == Manifests(*(tmp_path / f"{name}.json" for name in "abc"))
    assert prepare_corpus("manifest", train="a.json", dev="b.json").train == Path("a.json")


@pytest.mark.parametrize("cache_dir", ["FILE", "FILE/below", "x" * 300, "a\0b", "~no-such-user"])
def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch, cache_dir):
    monkeypatch.chdir(tmp_path)
    if cache_dir == "~no-such-user":
        (tmp_path / cache_dir).write_text("")  # taken as it is
    (tmp_path / "FILE").write_text("")
    with pytest.raises(
        DataError, match=r"^.*toy cannot be made: .*; choose another folder, such as with data.cache_dir$"
    ):
        prepare_in(Path(os.path.expanduser(cache_dir)) / "toy", FINGERPRINT, build)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), soundfile.LibsndfileError(2)])
def test_a_disk_that_gets_full(tmp_path, error):
    def full(folder):
        raise error

    with pytest.raises(DataError, match=r"toy cannot be made: "):
        prepare_in(tmp_path / "toy", FINGERPRINT, full)
    assert list(tmp_path.iterdir()) == []


def test_workers():
    assert workers(3) == 3
    assert workers() == len(os.sched_getaffinity(0))


def test_a_corpus_is_found_without_being_made(tmp_path):
    espeak = get_corpus("espeak_digits")
    options = espeak.options(train_size=7)
    assert espeak.find(options, tmp_path) is None
    assert espeak.training_size(options) == 7
    assert not list(tmp_path.iterdir())
    folder = cache_folder(tmp_path, "espeak_digits", espeak.fingerprint(options))
    folder.mkdir(parents=True)
    (folder / STAMP).write_text(json.dumps(espeak.fingerprint(options), sort_keys=True))
    assert espeak.find(options, tmp_path) == Manifests(
        *(folder / f"{split}.json" for split in ("train", "dev", "test"))
    )


def test_the_size_of_librispeech_is_known(tmp_path):
    corpus = get_corpus("librispeech")
    options = corpus.options(root=str(tmp_path))
    assert corpus.training_size(options) == 281241
    assert corpus.training_size(corpus.options(train=["train-clean-100"])) == 28539
    assert corpus.find(options, tmp_path) is corpus.find(corpus.options(), tmp_path) is None
    (tmp_path / "train-clean-100+clean-360+other-500.json").write_text("")
    assert corpus.find(options, tmp_path / "cache").train.parent == tmp_path
    assert get_corpus("an4").training_size(get_corpus("an4").options()) is None
