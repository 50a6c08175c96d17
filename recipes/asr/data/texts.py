"""The texts of the training set, before anything else of it is read."""

import os
from collections.abc import Iterator
from pathlib import Path

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.data.config import DataConfig
from lightning_novograd.recipes.asr.data.corpora import get_corpus
from lightning_novograd.recipes.asr.data.manifest import parse_row, read_rows


def training_texts(config: DataConfig) -> Iterator[tuple[str, str]]:
    """Each text of the training manifests as the alphabet will have it, behind ``manifest:line``.

    Lines that are none are passed over here: :func:`read_manifest` says what is wrong with them.

    Args:
        config: the ``data`` block; a corpus that is not there is made.

    Raises:
        DataError: a manifest cannot be read.
    """
    corpus = get_corpus(config.name)
    manifests = corpus.prepare(config.corpus, Path(os.path.expanduser(config.loading.cache_dir)))
    for source in corpus.training(config.corpus, manifests):
        yield from _texts(source.path, config)


def _texts(manifest: Path, config: DataConfig) -> Iterator[tuple[str, str]]:
    for line, row in read_rows(manifest):
        try:
            text = parse_row(row).get("text")
        except DataError:
            continue
        if isinstance(text, str):
            yield f"{manifest}:{line}", config.normalize(text)
