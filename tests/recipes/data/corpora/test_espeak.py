"""The synthesized corpus: the same bits in every run, other voices in the test set, audio that is speech-like."""

import hashlib
import importlib.metadata
import json
import string
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.data.corpora import prepare_corpus
from lightning_novograd.recipes.asr.data.corpora.espeak import digits as espeak_digits
from lightning_novograd.recipes.asr.data.corpora.espeak.digits import EspeakDigits, EspeakOptions, make_jobs
from lightning_novograd.recipes.asr.data.manifest import read_manifest
from lightning_novograd.recipes.asr.text.alphabet import Alphabet

pytest.importorskip("espeakng_loader", reason="needs eSpeak NG: pip install 'lightning-novograd[demo]'")

OPTIONS = EspeakOptions(train_size=12, dev_size=4, test_size=4)


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("espeak")
    EspeakDigits().build(OPTIONS, folder, processes=1)
    return folder


def test_bit_by_bit_the_same_with_another_number_of_processes(corpus, tmp_path):
    EspeakDigits().build(OPTIONS, tmp_path, processes=3)
    assert len(digests(corpus)) == 3 + 20
    assert digests(tmp_path) == digests(corpus)


def test_manifests_are_good(corpus):
    for split, size in (("train", 12), ("dev", 4), ("test", 4)):
        utterances = read_manifest(corpus / f"{split}.json", Alphabet(string.ascii_lowercase + " '"))
        assert len(utterances) == size
        assert all(3 <= len(u.text.split()) <= 7 for u in utterances)


def test_audio_is_neither_silent_nor_clipped(corpus):
    paths = sorted(corpus.rglob("*.flac"))
    assert len(paths) == 12 + 4 + 4
    for path in paths:
        wave, rate = soundfile.read(path)
        assert rate == 16000
        assert 0.05 < np.abs(wave).max() < 0.99
        frames = wave[: len(wave) // 400 * 400].reshape(-1, 400).std(axis=1)
        assert np.percentile(frames, 90) > 10 * frames.min(), "speech stands out from the pauses"


def test_texts_are_digits_and_spelled_letters():
    jobs = make_jobs("train", EspeakOptions(train_size=1000))
    texts = [set(job["text"].split()) for job in jobs]
    digits, letters = set(espeak_digits.DIGIT_WORDS), set(string.ascii_lowercase)
    assert all(words <= digits or words <= letters for words in texts)
    assert set.union(*texts) == digits | letters
    assert 0.2 < np.mean([words <= letters for words in texts]) < 0.3


JOBS = {
    "train": "59e436180c58cf6072db0ec02c33eb6b1624fb0c9426b3b18bb5fc9e37a43fcf",
    "dev": "7d12215c05167f2c8158441add35e4b2434839074c008fb49f3b0c53763d93f7",
    "test": "cd1f510debbb0e121c7a908eccda13101288d2a644e6e9e075b8aff5adabb4c2",
}


@pytest.mark.parametrize("split", JOBS)
def test_what_is_spoken_and_how_changes_with_the_version_alone(split):
    """Who changes a voice, a range or a seed raises VERSION; caches of before would be taken for the new corpus."""
    jobs = make_jobs(split, EspeakOptions(train_size=200))
    assert len(jobs) == 200
    assert jobs[3]["path"] == f"audio/{split}/{split}_00003.flac"
    assert hashlib.sha256(json.dumps(jobs).encode()).hexdigest() == JOBS[split]
    assert espeak_digits.VERSION == 1


def test_the_fingerprint_is_all_that_the_audio_depends_on(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", {"espeakng-loader": "1.2"}.get)
    options = {"seed": 1, "train_size": 2, "dev_size": 3, "test_size": 4, "letters": 0.5}
    assert EspeakDigits().fingerprint(EspeakOptions(**options)) == {
        "corpus": "espeak_digits",
        "version": 1,
        "espeakng-loader": "1.2",
        **options,
    }


def test_a_worker_that_ends_without_a_word(tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(espeak_digits, "WORKER", tmp_path / "worker.py")
    with pytest.raises(DataError, match=r"could not speak the corpus espeak_digits: exit status 3$"):
        espeak_digits._speak([{"path": "a.flac"}], tmp_path, processes=1)


def test_voices_of_the_test_set_are_never_heard_in_training():
    variants = {
        split: {job["voice"].partition("+")[2] for job in make_jobs(split, EspeakOptions())}
        for split in ("train", "dev", "test")
    }
    assert variants["train"] == variants["dev"] == set(espeak_digits.SEEN_VARIANTS)
    assert variants["test"] == set(espeak_digits.UNSEEN_VARIANTS)
    assert not variants["train"] & variants["test"]


def test_voices_differ(tmp_path):
    """The same words by every variant: no two sound the same."""
    variants = espeak_digits.SEEN_VARIANTS + espeak_digits.UNSEEN_VARIANTS
    same = make_jobs("train", OPTIONS)[0] | {"noise_db": -200, "ssml": "<speak>one</speak>"}
    jobs = [same | {"path": f"{variant}.flac", "voice": f"en-us+{variant}"} for variant in variants]
    espeak_digits._speak(jobs, tmp_path, processes=1)
    assert len(set(digests(tmp_path).values())) == len(variants)


def test_sizes_cut_the_same_sequence_and_seeds_change_it():
    long, short, other = (make_jobs("train", EspeakOptions(train_size=n, seed=s)) for n, s in ((20, 1), (8, 1), (8, 2)))
    assert long[:8] == short
    assert not {str(job) for job in other} & {str(job) for job in short}


def test_the_library_is_never_loaded_into_this_process():
    """It is GPL; the corpus is prepared without importing it or its loader."""
    code = (
        "import sys, tempfile\n"
        "from lightning_novograd.recipes.asr.data.corpora import prepare_corpus\n"
        "prepare_corpus('espeak_digits', None, tempfile.mkdtemp(), train_size=1, dev_size=1, test_size=1)\n"
        "assert 'espeakng_loader' not in sys.modules\n"
        "assert 'espeak' not in open('/proc/self/maps').read()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_voice_is_an_error(tmp_path):
    job = make_jobs("train", OPTIONS)[0] | {"path": "a.flac", "voice": "en-us+nobody"}
    with pytest.raises(DataError, match=r"eSpeak NG could not speak .*there is no voice en-us\+nobody"):
        espeak_digits._speak([job], tmp_path, processes=1)


def test_not_installed(monkeypatch, tmp_path):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(ConfigError, match=r"not installed: pip install 'lightning-novograd\[demo\]'"):
        prepare_corpus("espeak_digits", cache_dir=tmp_path)


def test_metadata_of_an_utterance(corpus):
    entry = json.loads((corpus / "train.json").read_text().splitlines()[0])
    assert set(entry) == {"audio_filepath", "duration", "text", "voice", "rate", "pitch"}
    samples, _ = soundfile.read(corpus / entry["audio_filepath"])
    assert entry["duration"] == round(len(samples) / 16000, 6)
