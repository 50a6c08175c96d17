"""The user's own data: manifests that exist already."""

import os
from dataclasses import dataclass
from pathlib import Path

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.data.corpora.base import Corpus, Manifests, Weighted, register_corpus
from lightning_novograd.recipes.common.section import Section, key


@dataclass(frozen=True, kw_only=True)
class WeightedManifest(Section):
    """One of several training manifests.

    Args:
        manifest_filepath: where it is.
        weight: how often each of its utterances is heard in an epoch; of 0.25 a quarter of them, other ones each time.
    """

    manifest_filepath: str = key()
    weight: float = key(1.0, above=0.0, high=1000.0)


@dataclass(frozen=True, kw_only=True)
class ManifestOptions(Section):
    """Where the manifests are.

    Args:
        train: of the training set: a path, or a list of paths and of `WeightedManifest`.
        dev: of the development set.
        test: of the test set; null for none.
    """

    train: str | list | None = key(None)
    dev: str | None = key(None)
    test: str | None = key(None)

    def check(self) -> None:
        """Both sets that training needs have to be there."""
        for split in ("train", "dev"):
            if not getattr(self, split):
                raise ConfigError(split, f"is missing: give the path of a manifest, the {split} set")
        paths = [source.manifest_filepath for source in self.sources]
        for path in paths:
            if not path:
                raise ConfigError("train", "has an empty path")
            if paths.count(path) > 1:
                raise ConfigError("train", f"has {path} more than once; give it a weight instead")

    @property
    def sources(self) -> list[WeightedManifest]:
        """Of the training set, one or several."""
        given = self.train if isinstance(self.train, list) else [self.train]
        return [
            WeightedManifest(manifest_filepath=entry)
            if isinstance(entry, str)
            else WeightedManifest.read(entry, f"train[{i}]")
            for i, entry in enumerate(given)
        ]


@register_corpus("manifest")
class OwnManifests(Corpus):
    """Nothing to prepare: whether the manifests can be used is found when they are read."""

    options = ManifestOptions

    def given(self, options: ManifestOptions) -> list[Path]:
        """The manifests."""
        paths = [*(source.manifest_filepath for source in options.sources), options.dev, options.test]
        return [_expanded(path) for path in paths if path]

    def prepare(self, options: ManifestOptions, cache_dir: Path) -> Manifests:
        """The manifests as they were given, the first one of several for training."""
        test = _expanded(options.test) if options.test else None
        return Manifests(_expanded(options.sources[0].manifest_filepath), _expanded(options.dev or ""), test)

    def find(self, options: ManifestOptions, cache_dir: Path) -> Manifests:
        """There is nothing to make."""
        return self.prepare(options, cache_dir)

    def training(self, options: ManifestOptions, manifests: Manifests) -> tuple[Weighted, ...]:
        """All of them."""
        return tuple(Weighted(_expanded(source.manifest_filepath), source.weight) for source in options.sources)


def _expanded(path: str) -> Path:
    return Path(os.path.expanduser(path))
