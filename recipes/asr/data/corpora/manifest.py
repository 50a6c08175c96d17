"""The user's own data: manifests that exist already."""

import os
from dataclasses import dataclass
from pathlib import Path

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.data.corpora.base import Corpus, Manifests, register_corpus
from lightning_novograd.recipes.asr.section import Section, key


@dataclass(frozen=True, kw_only=True)
class ManifestOptions(Section):
    """Where the manifests are.

    Args:
        train: of the training set.
        dev: of the development set.
        test: of the test set; null for none.
    """

    train: str | None = key(None)
    dev: str | None = key(None)
    test: str | None = key(None)

    def check(self) -> None:
        """Both sets that training needs have to be there."""
        for split in ("train", "dev"):
            if not getattr(self, split):
                raise ConfigError(split, f"is missing: give the path of a manifest, the {split} set")


@register_corpus("manifest")
class OwnManifests(Corpus):
    """Nothing to prepare: whether the manifests can be used is found when they are read."""

    options = ManifestOptions

    def prepare(self, options: ManifestOptions, cache_dir: Path) -> Manifests:
        """The manifests as they were given."""
        test = Path(os.path.expanduser(options.test)) if options.test else None
        return Manifests(*(Path(os.path.expanduser(path or "")) for path in (options.train, options.dev)), test)
