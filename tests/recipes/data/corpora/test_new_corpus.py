"""A corpus is one file: put into the folder of corpora, it is known everywhere."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.data.corpora import available_corpora
from lightning_novograd.recipes.asr.data.corpora.base import Corpus, register_corpus

TONES = """
import json
from dataclasses import asdict, dataclass

import numpy as np
import soundfile

from lightning_novograd.recipes.asr.data.corpora.base import GeneratedCorpus, register_corpus
from lightning_novograd.recipes.common.section import Section, key


@dataclass(frozen=True, kw_only=True)
class ToneOptions(Section):
    train_size: int = key(8, low=1)


@register_corpus("mine")
class Tones(GeneratedCorpus):
    options = ToneOptions

    def fingerprint(self, options):
        return {"corpus": self.name, **asdict(options)}

    def build(self, options, folder):
        for split, size in (("train", options.train_size), ("dev", 2), ("test", 1)):
            rows = ""
            for i in range(size):
                audio = f"{split}_{i}.wav"
                soundfile.write(folder / audio, 0.1 * np.sin(np.arange(8000 + 800 * i) * 0.1), 16000)
                rows += json.dumps({"audio_filepath": audio, "duration": 0.5 + 0.05 * i, "text": "beep"}) + "\\n"
            (folder / f"{split}.json").write_text(rows)
"""

USE = """
import json, sys
import lightning_novograd
from lightning_novograd.recipes.asr.data.config import DataConfig
from lightning_novograd.recipes.asr.data.corpora import available_corpora
from lightning_novograd.recipes.asr.data.module import SpeechDataModule
from lightning_novograd.recipes.asr.text.alphabet import Alphabet

config = DataConfig.from_mapping({"name": "mine", "train_size": 5, "batch_size": 4, "cache_dir": sys.argv[1]})
data = SpeechDataModule(config, Alphabet("bep"))
data.prepare_data()
data.setup("fit")
[batch] = data.train_dataloader()
print(json.dumps({
    "package": lightning_novograd.__file__,
    "corpora": available_corpora(),
    "options": vars(config.corpus),
    "wave": list(batch.wave_BS.shape),
    "texts": batch.texts,
    "imported": [name for name in sys.modules if "espeak" in name],
}))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the package with one more file."""
    folder = tmp_path_factory.mktemp("copy")
    package = folder / "lightning_novograd"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "lightning_novograd", package, ignore=ignored)
    for name in ("conf", "recipes"):
        shutil.copytree(ROOT / name, package / name, ignore=ignored)
    (package / "recipes" / "asr" / "data" / "corpora" / "tones.py").write_text(TONES)
    return folder


def run_in(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_it_is_known_to_configs_and_gives_batches(copy, tmp_path):
    done = run_in(copy, "-c", USE, tmp_path)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert Path(seen["package"]).is_relative_to(copy)
    assert seen["corpora"] == ["an4", "espeak_digits", "fsdd", "librispeech", "manifest", "mine"]
    assert seen["options"] == {"train_size": 5}
    assert seen["wave"][0] == 4
    assert seen["texts"] == ["beep"] * 4
    assert len(list(tmp_path.glob("mine/*/dev.json"))) == 1, "its name is that of its cache"
    assert not [name for name in seen["imported"] if name.endswith(("worker", "espeakng_loader"))]


@pytest.mark.slow
def test_it_can_be_prepared(copy, tmp_path):
    prepare = ("-m", "lightning_novograd.recipes.asr.prepare")
    done = run_in(copy, *prepare, "mine", "--out", tmp_path / "tones", "train_size=3")
    assert done.returncode == 0, done.stderr
    assert f"train: 3 utterances in {tmp_path}/tones/train.json" in done.stdout
    wrong = run_in(copy, *prepare, "mine", "--out", tmp_path / "wrong", "trainsize=3")
    assert wrong.stderr == "error: mine.trainsize: unknown key; did you mean 'train_size'? Allowed: train_size\n"


def test_a_name_that_is_taken_is_refused():
    class Other(Corpus):
        def prepare(self, options, cache_dir):
            raise NotImplementedError

    assert "fsdd" in available_corpora()
    with pytest.raises(ConfigError, match=r"corpus 'fsdd' is already registered \(.*\.corpora\.fsdd\.Fsdd\)"):
        register_corpus("fsdd")(Other)
