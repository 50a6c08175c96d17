"""How large a training set is, as far as that is known before its audio is looked at."""

import json
import os
from pathlib import Path
from typing import NamedTuple

from lightning_novograd.errors import DataError, LightningNovoGradError
from lightning_novograd.recipes.asr.data.config import DataConfig, LoadingConfig
from lightning_novograd.recipes.asr.data.corpora import get_corpus
from lightning_novograd.recipes.common.data.mixture import Mixture


class TrainingSize(NamedTuple):
    """Utterances that an epoch hears, and their s of audio where that is known; or why nothing is."""

    utterances: int | None
    seconds: float | None = None
    note: str = ""


def training_size(config: DataConfig) -> TrainingSize:
    """The size of the training set, without making the corpus or opening a recording.

    Where the manifests are there they are counted, within the limits of duration. Where they are not, corpora that know
    it say how many utterances they have.

    Args:
        config: the ``data`` group.
    """
    corpus = get_corpus(config.name)
    try:
        manifests = corpus.find(config.corpus, Path(os.path.expanduser(config.loading.cache_dir)))
        sources = None if manifests is None else corpus.training(config.corpus, manifests)
        if sources is not None:
            sizes = [_count(source.path, config.loading) for source in sources]
            utterances, seconds = zip(*sizes, strict=True)
            weights = [source.weight for source in sources]
            heard = Mixture(utterances, weights).size
            return TrainingSize(heard, sum(w * s for w, s in zip(weights, seconds, strict=True)))
        why = "the corpus is not there"
    except (LightningNovoGradError, OSError) as error:
        why = str(error)
    known = corpus.training_size(config.corpus)
    if known is None:
        return TrainingSize(None, note=why)
    limits = config.loading
    some_out = limits.min_duration is not None or limits.max_duration is not None
    note = "less those outside data.min_duration and max_duration: " if some_out else ""
    return TrainingSize(known, note=f"{note}{why}")


def _count(path: Path, limits: LoadingConfig) -> tuple[int, float]:
    """Utterances of a manifest within the limits, and their s of audio."""
    low = limits.min_duration or 0.0
    high = float("inf") if limits.max_duration is None else limits.max_duration
    try:
        with path.open(encoding="utf-8") as rows:
            durations = [float(json.loads(row)["duration"]) for row in rows if row.strip()]
    except FileNotFoundError:
        raise DataError(f"manifest {path} does not exist") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"manifest {path} cannot be read: {error}") from None
    inside = [duration for duration in durations if low <= duration <= high]
    return len(inside), sum(inside)
