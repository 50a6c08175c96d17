"""The texts of the training set, before anything else of it is read."""

import json
from collections.abc import Iterator
from pathlib import Path

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.data.config import DataConfig
from lightning_novograd.recipes.asr.data.corpora import get_corpus


def training_texts(config: DataConfig) -> Iterator[tuple[str, str]]:
    """Each text of the training manifest as the alphabet will have it, behind ``manifest:line``.

    Lines that are none are passed over here: :func:`read_manifest` says what is wrong with them.

    Args:
        config: the ``data`` block; a corpus that is not there is made.

    Raises:
        DataError: the manifest cannot be read.
    """
    manifest = get_corpus(config.name).prepare(config.corpus, Path(config.loading.cache_dir).expanduser()).train
    try:
        content = manifest.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"manifest {manifest} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    for line, row in enumerate(content.split("\n"), start=1):
        try:
            entry = json.loads(row)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and isinstance(entry.get("text"), str):
            yield f"{manifest}:{line}", config.normalize(entry["text"])
