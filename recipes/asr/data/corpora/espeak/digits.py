"""The corpus of the demo: connected digits and spelled letters, spoken by eSpeak NG.

An utterance is 3 to 7 digits ("seven three one") or 3 to 6 spelled letters ("b k z"), spoken as one phrase by one of
many voices: an accent of English with one of eSpeak's voice variants, at its own rate, pitch, liveliness and pause
between words, with low noise. `train` and `dev` share the voices, `test` has variants of its own.

Everything is drawn from seeds, and utterances do not depend on each other or on the number of processes: with one
version of eSpeak NG, audio and manifests are the same bit by bit in every run.

eSpeak NG (https://github.com/espeak-ng/espeak-ng) is GPL-3.0; it comes with espeakng-loader, the extra `demo`, and
is used by processes of its own (worker.py).
"""

import importlib.metadata
import json
import random
import string
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.data.corpora.base import GeneratedCorpus, register_corpus
from lightning_novograd.recipes.asr.data.corpora.rng import choice, randint, seed_of
from lightning_novograd.recipes.common.data.workers import workers
from lightning_novograd.recipes.common.section import Section, key

VERSION = 1  # of the audio; a change of it makes new caches
WORKER = Path(__file__).with_name("worker.py")
SAMPLE_RATE = 16000
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en-us", "en-us-nyc", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
# Variants that sound like people: no whispers, robots or croaks, none that overdrives, no two of one family.
SEEN_VARIANTS = (
    *("f1", "f2", "f4", "m1", "m2", "m3", "m4", "m6", "m7", "klatt2"),
    *("Alicia", "Andrea", "Andy", "Annie", "Gene", "Hugo", "Lee", "Michael", "Mike"),
    *("adam", "anika", "aunty", "belinda", "benjamin", "boris", "david", "edward"),
    *("grandma", "grandpa", "john", "marcelo", "max", "michel", "miguel", "norbert", "pablo"),
    *("pedro", "quincy", "robert", "sandro", "shelby", "travis", "victor"),
)
UNSEEN_VARIANTS = ("f3", "f5", "m5", "m8", "Alex", "Denis", "Diogo", "Mario", "ian", "linda", "steph")
DIGITS, LETTERS = (3, 7), (3, 6)
RATE, PITCH, PITCH_RANGE, WORD_GAP = (120, 220), (25, 75), (30, 70), (0, 8)  # words/minute, espeak's units, 10 ms
SILENCE_MS, NOISE_DB = (50, 200), (-60, -35)


@dataclass(frozen=True, kw_only=True)
class EspeakOptions(Section):
    """How much is spoken.

    Args:
        seed: of everything.
        train_size: utterances of the training set.
        dev_size: of the development set.
        test_size: of the test set.
        letters: share of utterances that are spelled letters; the others are digits. Letters are the harder part:
            b, d, e, g, p, t, v and z rhyme.
    """

    seed: int = key(2020)
    train_size: int = key(3200, low=1)
    dev_size: int = key(200, low=1)
    test_size: int = key(200, low=1)
    letters: float = key(0.25, low=0.0, high=1.0)


@register_corpus("espeak_digits")
class EspeakDigits(GeneratedCorpus):
    """The corpus `espeak_digits`."""

    options = EspeakOptions

    def fingerprint(self, options: EspeakOptions) -> dict[str, Any]:
        """Options, and the version of eSpeak NG.

        Raises:
            ConfigError: it is not installed.
        """
        try:
            version = importlib.metadata.version("espeakng-loader")
        except importlib.metadata.PackageNotFoundError:
            raise ConfigError(
                "data.name",
                "espeak_digits is spoken by eSpeak NG, which is not installed: pip install 'lightning-novograd[demo]'",
            ) from None
        return {"corpus": "espeak_digits", "version": VERSION, "espeakng-loader": version, **asdict(options)}

    def training_size(self, options: EspeakOptions) -> int:
        """As many as are spoken."""
        return options.train_size

    def build(self, options: EspeakOptions, folder: Path, processes: int | None = None) -> None:
        """Write manifests and 16 kHz FLAC files."""
        splits = {split: make_jobs(split, options) for split in ("train", "dev", "test")}
        for split in splits:
            (folder / "audio" / split).mkdir(parents=True)
        jobs = [job for split in splits.values() for job in split]
        samples = _speak(jobs, folder, workers(processes))
        for split, split_jobs in splits.items():
            entries = [_manifest_entry(job, samples[job["path"]]) for job in split_jobs]
            rows = "".join(json.dumps(entry) + "\n" for entry in entries)
            (folder / f"{split}.json").write_text(rows, encoding="utf-8")


def make_jobs(split: str, options: EspeakOptions) -> list[dict[str, Any]]:
    """What is spoken in a split, and how; the first `n` are the same for every size."""
    variants = UNSEEN_VARIANTS if split == "test" else SEEN_VARIANTS
    return [_make_job(split, i, variants[i % len(variants)], options) for i in range(getattr(options, f"{split}_size"))]


def _make_job(split: str, index: int, variant: str, options: EspeakOptions) -> dict[str, Any]:
    seed = seed_of(options.seed, "espeak_digits", split, index)
    rng = random.Random(seed)
    if rng.random() < options.letters:
        words = [choice(rng, string.ascii_lowercase) for _ in range(randint(rng, *LETTERS))]
        ssml = f'<say-as interpret-as="characters">{"".join(words)}</say-as>'
    else:
        words = [choice(rng, DIGIT_WORDS) for _ in range(randint(rng, *DIGITS))]
        ssml = " ".join(words)
    return {
        "path": f"audio/{split}/{split}_{index:05d}.flac",
        "text": " ".join(words),
        "ssml": f"<speak>{ssml}</speak>",
        "voice": f"{choice(rng, ACCENTS)}+{variant}",
        "rate": randint(rng, *RATE),
        "pitch": randint(rng, *PITCH),
        "pitch_range": randint(rng, *PITCH_RANGE),
        "word_gap": randint(rng, *WORD_GAP),
        "silence_ms": [randint(rng, *SILENCE_MS), randint(rng, *SILENCE_MS)],
        "noise_db": randint(rng, *NOISE_DB),
        "seed": seed,
    }


def _speak(jobs: Sequence[dict[str, Any]], folder: Path, processes: int) -> dict[str, int]:
    """Samples of each written file, by its path in `folder`."""
    shares = [jobs[i::processes] for i in range(min(processes, len(jobs)))]
    with ThreadPoolExecutor(len(shares)) as pool:  # a thread waits for each process
        counts = pool.map(partial(_run_worker, folder=folder), shares)
        return {
            job["path"]: n for share, ns in zip(shares, counts, strict=True) for job, n in zip(share, ns, strict=True)
        }


def _run_worker(jobs: Sequence[dict[str, Any]], folder: Path) -> list[int]:
    rows = "".join(json.dumps(job) + "\n" for job in jobs)
    # -P: the worker's folder has modules of common names, which are not meant for others to import
    command = [sys.executable, "-P", str(WORKER)]
    done = subprocess.run(command, input=rows, capture_output=True, text=True, cwd=folder, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise DataError(f"eSpeak NG could not speak the corpus espeak_digits: {reason}")
    return [int(count) for count in done.stdout.split()]


def _manifest_entry(job: dict[str, Any], samples: int) -> dict[str, Any]:
    entry = {"audio_filepath": job["path"], "duration": round(samples / SAMPLE_RATE, 6), "text": job["text"]}
    return entry | {name: job[name] for name in ("voice", "rate", "pitch")}
