"""The user's own data: manifests that exist already."""

from dataclasses import dataclass, field
from pathlib import Path

from lightning_novograd.recipes.asr.corpora.base import Manifests


@dataclass(frozen=True)
class ManifestOptions:
    """Paths of the manifests; without a test set there is no test at the end of a run."""

    train: Path = field(metadata={"help": "the manifest of the training set"})
    dev: Path = field(metadata={"help": "the manifest of the development set"})
    test: Path | None = None


class OwnManifests:
    """Nothing to prepare: whether the manifests can be used is found when they are read."""

    options = ManifestOptions

    def prepare(self, options: ManifestOptions, cache_dir: Path) -> Manifests:
        """The manifests as they were given."""
        return Manifests(options.train, options.dev, options.test)
