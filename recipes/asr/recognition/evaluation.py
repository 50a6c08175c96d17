"""A trained model on a set of utterances: what it hears, and its errors."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.data.corpora.manifest import ManifestOptions
from lightning_novograd.recipes.asr.data.dataset import SpeechDataset, collate
from lightning_novograd.recipes.asr.data.loader import BatchLoader
from lightning_novograd.recipes.asr.data.module import SpeechDataModule
from lightning_novograd.recipes.asr.data.sampler import EvalBatchSampler
from lightning_novograd.recipes.asr.recognition.recognizer import Recognizer
from lightning_novograd.recipes.asr.recognition.statistics import interval, score
from lightning_novograd.recipes.asr.recognition.trained_run import TrainedRun
from lightning_novograd.recipes.asr.text.alignment import EditCounts
from lightning_novograd.recipes.asr.text.metrics import ErrorRate


def read_set(run: TrainedRun, recognizer: Recognizer, manifest: Path | None = None) -> SpeechDataset:
    """The utterances of a manifest; without one those of the run's test set, or else of its dev set.

    Raises:
        ConfigError: there is no manifest, and no run that has sets.
        DataError: a line of the manifest or its audio cannot be used. Texts may be longer than CTC can spell in the
            time: the model is measured on them all the same.
    """
    config = run.data
    if manifest is None and not run.data.name:
        raise ConfigError("--manifest", f"is needed: {run.folder} is a model without a run, which would have sets")
    if manifest is not None:
        path = str(manifest)
        config = dataclasses.replace(config, name="manifest", corpus=ManifestOptions(train=path, dev=path, test=path))
    data = SpeechDataModule(config, recognizer.alphabet, sample_rate=recognizer.sample_rate)
    split, stage = ("test", "test") if data.has_test_set else ("dev", "validate")
    data.setup(stage)
    return data.datasets[split]


def transcribe_set(recognizer: Recognizer, dataset: SpeechDataset, batch_size: int, num_workers: int = 0) -> list[str]:
    """One text per utterance, in the order of the set."""
    hypotheses = [""] * len(dataset)
    sampler = EvalBatchSampler(dataset.durations, batch_size)
    loader = BatchLoader(dataset, sampler, collate, num_workers=num_workers)
    for indices, batch in zip(sampler, loader, strict=True):
        for index, text in zip(indices, recognizer(batch.wave_BS, batch.wave_lens_B), strict=True):
            hypotheses[index] = text
    loader.close()
    return hypotheses


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
