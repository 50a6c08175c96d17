"""Corpora by name.

A corpus is one module or package of this folder: a class with its options, registered under its name.
"""

import importlib
import os
import pkgutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from lightning_novograd.errors import ConfigError, choices
from lightning_novograd.recipes.asr.data.corpora.base import CORPORA, Corpus, Manifests

__all__ = ["DEFAULT_CACHE", "Manifests", "available_corpora", "get_corpus", "prepare_corpus"]

DEFAULT_CACHE = Path("~/.cache/lightning_novograd")


@cache
def _import_all() -> None:
    """Let every module of this folder register its corpora."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)


def available_corpora() -> list[str]:
    """Names that `prepare_corpus` takes."""
    _import_all()
    return sorted(CORPORA)


def get_corpus(name: str, path: str = "data.name") -> Corpus:
    """The corpus of that name.

    Raises:
        ConfigError: there is none, naming the nearest.
    """
    _import_all()
    if name not in CORPORA:
        raise ConfigError(path, f"unknown corpus {name!r}{choices(name, CORPORA)}")
    return CORPORA[name]


def prepare_corpus(
    name: str, root: str | Path | None = None, cache_dir: str | Path = DEFAULT_CACHE, **options: Any
) -> Manifests:
    """Make a corpus unless it is there, and say where its manifests are.

    Args:
        name: one of `available_corpora()`.
        root: where the source of the corpus lies, for those that have one.
        cache_dir: generated corpora go into a folder of their own under it.
        options: of the corpus; see its options class.

    Raises:
        ConfigError: unknown corpus or option.
        DataError: the source is not what the corpus needs.

    Example:
        >>> prepare_corpus("fsdd", "free-spoken-digit-dataset").dev.name  # doctest: +SKIP
        'dev.json'
    """
    corpus = get_corpus(name)
    values: Mapping[str, Any] = options if root is None else {"root": str(root), **options}
    return corpus.prepare(corpus.options.read(values, "data"), Path(os.path.expanduser(cache_dir)))
