"""Connected digits of real speech: the entries and the samples that the shared definition has."""

import hashlib
import importlib.util
import json

import numpy as np
import pytest
import soundfile

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.data.corpora import fsdd, prepare_corpus
from lightning_novograd.recipes.asr.data.manifest import read_manifest
from lightning_novograd.recipes.asr.text.alphabet import Alphabet

SPEAKERS = (*fsdd.SEEN, *fsdd.UNSEEN)
SMALL = {"train_size": 12, "dev_size": 5, "test_size": 3}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """Laid out as a clone of the dataset; the recordings are short noise."""
    root = tmp_path_factory.mktemp("free-spoken-digit-dataset")
    (root / "recordings").mkdir()
    rng = np.random.default_rng(0)
    for digit in range(10):
        for speaker in SPEAKERS:
            for index in range(50):
                samples = rng.integers(-3000, 3000, 400 + 10 * digit, dtype=np.int16)
                soundfile.write(root / "recordings" / f"{digit}_{speaker}_{index}.wav", samples, 8000)
    return root


def entries_of(manifest):
    return [json.loads(line) for line in manifest.read_text().splitlines()]


def test_a_clone_is_enough(clone, tmp_path):
    made = prepare_corpus("fsdd", clone, tmp_path, **SMALL)
    for manifest, size in ((made.train, 12), (made.dev, 5), (made.test, 3)):
        utterances = read_manifest(manifest, Alphabet("abcdefghijklmnopqrstuvwxyz "))
        assert len(utterances) == size
        for utterance, entry in zip(utterances, entries_of(manifest), strict=True):
            samples, rate = soundfile.read(utterance.audio, dtype="int16")
            assert rate == 16000
            assert len(samples) / rate == pytest.approx(entry["duration"], abs=1e-6)
            assert utterance.text.split() == [fsdd.WORDS[int(name[0])] for name in entry["recordings"]]
            assert 3 <= len(entry["recordings"]) <= 7


def test_the_sets_are_disjoint(clone):
    recordings = fsdd.Recordings(clone)
    used = {split: set() for split in fsdd.SPLITS}
    for split in fsdd.SPLITS:
        for entry in fsdd.make_entries(split, recordings, seed=1, count=300):
            used[split].update(entry["recordings"])
    assert {name.split("_")[1] for name in used["test"]} == {"theo"}
    assert {name.split("_")[1] for name in used["train"] | used["dev"]} == set(fsdd.SEEN)
    assert {int(name.split("_")[2]) for name in used["dev"]} == set(range(5))
    assert min(int(name.split("_")[2]) for name in used["train"]) == 5


def test_sizes_cut_the_same_sequence_and_seeds_change_it(clone):
    recordings = fsdd.Recordings(clone)
    long, short, other = (list(fsdd.make_entries("train", recordings, s, n)) for s, n in ((1, 20), (1, 8), (2, 8)))
    assert long[:8] == short
    assert other != short


def test_even_samples_are_the_recording(clone):
    """Interpolation by two adds samples in between and changes none."""
    recordings = fsdd.Recordings(clone)
    entry = next(fsdd.make_entries("train", recordings, 1, 1)) | {"gap_noise_db": None}
    wave = fsdd.build_audio(entry, recordings)
    gap = entry["gaps_ms"][0] * 8
    first = recordings[entry["recordings"][0]]
    assert not wave[: 2 * gap : 2].any()
    assert (wave[2 * gap : 2 * (gap + len(first)) : 2] == first).all()


def test_audio_is_made_anew_for_other_recordings(clone, tmp_path):
    options = fsdd.FsddOptions(root=str(clone), **SMALL)
    before = fsdd.Fsdd().fingerprint(options)
    assert before == fsdd.Fsdd().fingerprint(options)
    assert before != fsdd.Fsdd().fingerprint(fsdd.FsddOptions(root=str(clone)))
    path = clone / "recordings" / "0_theo_0.wav"
    original = path.read_bytes()
    soundfile.write(path, np.zeros(9, dtype=np.int16), 8000)
    assert before != fsdd.Fsdd().fingerprint(options)
    path.write_bytes(original)


def test_the_fingerprint_is_all_that_the_audio_depends_on(clone):
    names = sorted(path.name for path in (clone / "recordings").iterdir())
    sizes = [f"{name} {(clone / 'recordings' / name).stat().st_size}" for name in names]
    assert fsdd.Fsdd().fingerprint(fsdd.FsddOptions(root=str(clone), seed=3, **SMALL)) == {
        "corpus": "fsdd",
        "version": 1,
        "source": hashlib.sha256("\n".join(sizes).encode()).hexdigest(),
        "root": None,
        "seed": 3,
        **SMALL,
    }


def test_the_recordings_may_be_the_folder_itself_and_another_format(tmp_path, clone):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in (clone / "recordings").iterdir():
        (folder / path.with_suffix(".flac").name).symlink_to(path)
    (folder / "7_theo_12.txt").write_text("")
    found = fsdd.find_recordings(folder)
    assert list(found) == sorted(found)
    assert len(found) == 10 * 50 * 6
    assert {path.suffix for path in found.values()} == {".flac"}
    (folder / "9_theo_0.flac").unlink()
    with pytest.raises(DataError, match=f"^{folder} lacks 1 recordings of theo, such as 9_theo_0$"):
        fsdd.find_recordings(folder)
    with pytest.raises(DataError, match="there is no recording 9_nobody_0 "):
        fsdd.Recordings(clone)["9_nobody_0"]


def test_no_recordings(tmp_path):
    with pytest.raises(DataError, match=r"no recordings of the Free Spoken Digit Dataset in .* git clone https://"):
        prepare_corpus("fsdd", tmp_path, tmp_path / "cache")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "lacks 1 recordings of theo, such as 3_theo_7"),
        (
            lambda path: soundfile.write(path, np.zeros(80), 16000),
            "must be mono at 8000 Hz, but has 1 channels at 16000",
        ),
        (
            lambda path: soundfile.write(path, np.zeros((80, 2)), 8000),
            "must be mono at 8000 Hz, but has 2 channels at 8000",
        ),
        (lambda path: path.write_text("no audio"), r"3_theo_7\.wav cannot be read"),
    ],
    ids=["missing", "rate", "stereo", "corrupt"],
)
def test_damaged_recordings(clone, damage, message):
    path = clone / "recordings" / "3_theo_7.wav"
    original = path.read_bytes()
    try:
        damage(path)
        with pytest.raises(DataError, match=message):
            fsdd.Recordings(clone)["3_theo_7"]
    finally:
        path.write_bytes(original)


@pytest.fixture(scope="module")
def shared_definition(shared_data):
    """The script that defines the shared sets, and its build_audio."""
    spec = importlib.util.spec_from_file_location("connected", shared_data / "make_connected_digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("split", "count"), [("train", 2000), ("dev", 200), ("test", 200)])
def test_the_entries_are_the_shared_ones(shared_data, shared_definition, split, count):
    recordings = fsdd.Recordings(shared_data)
    made = list(fsdd.make_entries(split, recordings, seed=2020, count=count))
    assert made == entries_of(shared_data / "connected_digits" / f"{split}.json")
    for entry in made[:: count // 10]:
        expected = shared_definition.build_audio(entry, str(shared_data / "fsdd" / "recordings"))
        assert np.array_equal(fsdd.build_audio(entry, recordings), expected)


def test_the_files_hold_the_shared_samples(shared_data, shared_definition, tmp_path):
    made = prepare_corpus("fsdd", shared_data, tmp_path, train_size=3, dev_size=2, test_size=2)
    for manifest, size in ((made.train, 3), (made.dev, 2), (made.test, 2)):
        entries = entries_of(manifest)
        assert len(entries) == size
        for entry in entries:
            samples, _ = soundfile.read(manifest.parent / entry["audio_filepath"], dtype="int16")
            expected = shared_definition.build_audio(entry, str(shared_data / "fsdd" / "recordings"))
            assert hashlib.sha256(samples.tobytes()).digest() == hashlib.sha256(expected.tobytes()).digest()


def test_manifests_beside_the_recordings_are_the_same_as_generated_ones(shared_data):
    options = fsdd.FsddOptions(root=str(shared_data))
    assert set(fsdd._given_manifests(options)) == set(fsdd.SPLITS)
    assert not fsdd._given_manifests(fsdd.FsddOptions(root=str(shared_data), seed=1))
