"""The data group of the config: which corpus, how it is read, how its texts are changed."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_novograd.errors import ConfigError, DataError, choices
from lightning_novograd.recipes.asr.data.augment import AugmentConfig
from lightning_novograd.recipes.asr.data.corpora import DEFAULT_CACHE, available_corpora, get_corpus
from lightning_novograd.recipes.asr.text.normalize import CASES, FORMS, normalize
from lightning_novograd.recipes.common.section import Section, key, plain_mapping


@dataclass(frozen=True, kw_only=True)
class NormalizeConfig(Section):
    """How the texts of all manifests are changed when they are read; evaluation does the same.

    Args:
        case: ``lower``, ``upper``, or null for as it is.
        unicode: ``NFC``, ``NFD``, ``NFKC``, ``NFKD``, or null.
    """

    case: str | None = key(None, allowed=CASES)
    unicode: str | None = key(None, allowed=FORMS)

    def __call__(self, text: str) -> str:
        """`text` as the alphabet has it."""
        return normalize(text, self.case, self.unicode)


@dataclass(frozen=True, kw_only=True)
class LoadingConfig(Section):
    """How a corpus is read; what it is made of is in the options of the corpus.

    Args:
        cache_dir: generated corpora and decoded audio are kept here.
        batch_size: training utterances per device and micro-batch.
        batch_seconds: s, of audio in a training batch, instead of `batch_size`; padding comes on top.
        eval_batch_size: most utterances per batch of the development and test sets; null is `batch_size`.
        bucket_steps: optimizer steps whose utterances are sorted by duration together, for less padding; 1: none.
        num_workers: processes that load ahead; 0 loads in the training process, null is its share of the cores, 8 at
            most.
        cache_audio: decode all audio once, into a file in `cache_dir` that all processes of a machine map into memory
            (115 MB per hour).
        min_duration: s; shorter utterances are left out of the training set and counted in the others; null: none.
        max_duration: s; likewise for longer ones.
        downmix: average the channels of recordings that have several, which are an error otherwise.
    """

    cache_dir: str = key(str(DEFAULT_CACHE))
    batch_size: int = key(32, low=1)
    batch_seconds: float | None = key(None, above=0.0)
    eval_batch_size: int | None = key(None, low=1)
    bucket_steps: int = key(10, low=1)
    num_workers: int | None = key(0, low=0)
    cache_audio: bool = key(False)
    min_duration: float | None = key(None, low=0.0)
    max_duration: float | None = key(None, above=0.0)
    downmix: bool = key(False)

    def check(self) -> None:
        """Some utterances have to be left."""
        if self.min_duration is not None and self.max_duration is not None and self.min_duration > self.max_duration:
            raise ConfigError("min_duration", f"{self.min_duration:g} exceeds max_duration {self.max_duration:g}")


@dataclass(frozen=True)
class DataConfig:
    """The `data` group of the config: the corpus, how it is read, augmentation, and the texts."""

    name: str
    corpus: Section
    loading: LoadingConfig
    augment: AugmentConfig
    normalize: NormalizeConfig = dataclasses.field(default_factory=NormalizeConfig)

    def check_given(self) -> None:
        """See at once, without reading any, whether the manifests that the config names are there.

        Raises:
            DataError: one is not.
        """
        given = get_corpus(self.name).given(self.corpus)
        noise = self.augment.noise and self.augment.noise.manifest
        for path in [*given, *([Path(os.path.expanduser(noise))] if noise else [])]:
            if not os.path.exists(path):
                raise DataError(f"manifest {path} does not exist")

    @classmethod
    def from_mapping(cls, cfg: Any, path: str = "data") -> "DataConfig":
        """A checked config.

        Keys are `name`, `augment`, `normalize`, those of `LoadingConfig` and the options of the corpus, side by side.

        Raises:
            ConfigError: an unknown key, a missing one, a wrong type or an impossible value, by its full path.
        """
        values = plain_mapping(cfg, path)
        name = values.pop("name", None)
        if not isinstance(name, str):
            raise ConfigError(f"{path}.name", f"is missing: one of {', '.join(available_corpora())}")
        options = get_corpus(name, f"{path}.name").options
        augment = values.pop("augment", None) or {}
        texts = values.pop("normalize", None) or {}
        of_loading, of_corpus = ({f.name for f in dataclasses.fields(c)} for c in (LoadingConfig, options))
        for unknown in values.keys() - of_loading - of_corpus:
            allowed = {"name", "augment", "normalize"} | of_loading | of_corpus
            raise ConfigError(f"{path}.{unknown}", f"unknown key{choices(unknown, allowed)}")
        return cls(
            name,
            options.read({k: v for k, v in values.items() if k in of_corpus}, path),
            LoadingConfig.read({k: v for k, v in values.items() if k in of_loading}, path),
            AugmentConfig.read(augment, f"{path}.augment"),
            NormalizeConfig.read(texts, f"{path}.normalize"),
        )
