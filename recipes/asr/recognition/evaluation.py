"""A trained model on a set of utterances: what it hears, and its errors."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.data.corpora.manifest import ManifestOptions
from lightning_novograd.recipes.asr.data.dataset import Batch, SpeechDataset, collate
from lightning_novograd.recipes.asr.data.module import SpeechDataModule
from lightning_novograd.recipes.asr.recognition.recognizer import Recognizer
from lightning_novograd.recipes.asr.recognition.statistics import interval, score
from lightning_novograd.recipes.asr.recognition.trained_run import TrainedRun
from lightning_novograd.recipes.asr.text.alignment import EditCounts
from lightning_novograd.recipes.asr.text.metrics import ErrorRate
from lightning_novograd.recipes.common.data.loader import BatchLoader
from lightning_novograd.recipes.common.data.sampler import EvalBatchSampler


def read_set(run: TrainedRun, recognizer: Recognizer, manifest: Path | None = None) -> SpeechDataset:
    """The utterances of a manifest; without one those of the run's test set, or else of its dev set.

    Raises:
        ConfigError: there is no manifest, and no run that has sets.
        DataError: a line of the manifest or its audio cannot be used. Texts may be longer than CTC can spell in the
            time: the model is measured on them all the same.
    """
    config = run.data
    if manifest is None:
        _check_has_sets(run)
    else:
        path = str(manifest)
        config = dataclasses.replace(config, name="manifest", corpus=ManifestOptions(train=path, dev=path, test=path))
    data = SpeechDataModule(config, recognizer.alphabet, sample_rate=recognizer.sample_rate)
    split, stage = ("test", "test") if data.has_test_set else ("dev", "validate")
    data.setup(stage)
    return data.datasets[split]


def read_tuning_set(run: TrainedRun, recognizer: Recognizer, manifest: Path | None = None) -> SpeechDataset:
    """The utterances of a manifest; without one those of the run's dev set, never of its test set.

    Raises:
        ConfigError: there is no manifest, and no run that has sets; or the manifest is the run's test set.
        DataError: as of :func:`read_set`.
    """
    if manifest is not None:
        test = run.data.corpus.test if isinstance(run.data.corpus, ManifestOptions) else None
        if test and os.path.realpath(os.path.expanduser(test)) == os.path.realpath(manifest):
            problem = f"{manifest} is the test set of {run.folder}: what is tuned on it is not measured by it any more"
            raise ConfigError("--manifest", problem)
        return read_set(run, recognizer, manifest)
    _check_has_sets(run)
    data = SpeechDataModule(run.data, recognizer.alphabet, sample_rate=recognizer.sample_rate)
    data.setup("validate")
    return data.datasets["dev"]


def _check_has_sets(run: TrainedRun) -> None:
    if not run.data.name:
        raise ConfigError("--manifest", f"is needed: {run.folder} is a model without a run, which would have sets")


def transcribe_set(
    recognizer: Recognizer, dataset: SpeechDataset, batch_size: int, num_workers: int | None = 0
) -> list[str]:
    """One text per utterance, in the order of the set."""
    hypotheses = [""] * len(dataset)
    for indices, batch in _batches(dataset, batch_size, num_workers):
        for index, text in zip(indices, recognizer(batch.wave_BS, batch.wave_lens_B), strict=True):
            hypotheses[index] = text
    return hypotheses


def log_probs_of(
    recognizer: Recognizer, dataset: SpeechDataset, batch_size: int, num_workers: int | None = 0
) -> list[Tensor]:
    """Log-probabilities of each utterance, float32 of shape (frames, classes), in the order of the set.

    An hour has about 20 MB with 28 letters and 50 frames per second.
    """
    found = [torch.empty(0)] * len(dataset)
    for indices, batch in _batches(dataset, batch_size, num_workers):
        log_probs_BTV, lens_B = recognizer.log_probs(batch.wave_BS, batch.wave_lens_B)
        for index, scores_TV, n in zip(indices, log_probs_BTV.float().cpu(), lens_B.tolist(), strict=True):
            found[index] = scores_TV[:n].clone()
    return found


def _batches(dataset: SpeechDataset, batch_size: int, num_workers: int | None) -> Iterator[tuple[Sequence[int], Batch]]:
    """All utterances once, each batch with its indices."""
    sampler = EvalBatchSampler(dataset.durations, batch_size)
    loader = BatchLoader(dataset, sampler, collate, num_workers=num_workers)
    yield from zip(sampler, loader, strict=True)
    loader.close()


def count_errors(dataset: SpeechDataset, hypotheses: Sequence[str]) -> dict[str, Any]:
    """Error rates, as fractions, and what they are made of.

    Returns:
        `manifest`, `num_utterances`, `audio_seconds`; for words and characters the rate, its errors, their kinds and
        the length of the references; `wer_interval` (see `interval`; None without words).
    """
    references = [u.text for u in dataset.utterances]
    scored = score(dataset.utterances, hypotheses)
    totals: dict[str, Any] = {"manifest": str(dataset.utterances[0].manifest), "num_utterances": len(references)}
    for name, unit, metric in (("wer", "word", ErrorRate("word")), ("cer", "char", ErrorRate("char"))):
        metric.update(hypotheses, references)
        totals |= {name: metric.compute().item(), f"{unit}_errors": int(metric.errors), f"{unit}s": int(metric.units)}
        kinds = [getattr(one, f"{unit}s") for one in scored]
        totals |= {f"{unit}_{kind}": sum(getattr(counts, kind) for counts in kinds) for kind in EditCounts._fields}
    totals["wer_interval"] = interval(scored)
    totals["audio_seconds"] = round(sum(u.duration for u in dataset.utterances), 3)
    return totals
