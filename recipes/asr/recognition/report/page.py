"""The page: what is in it, and how it is laid out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch

from lightning_novograd.recipes.asr.data.dataset import SpeechDataset
from lightning_novograd.recipes.asr.recognition.recognizer import Recognizer
from lightning_novograd.recipes.asr.recognition.report.media import LONGEST, player, spectrogram
from lightning_novograd.recipes.asr.recognition.statistics import (
    CONFIDENCE,
    Part,
    Scored,
    by_length,
    by_speaker,
    confusions,
    drawn_by_speaker,
    score,
    worst,
)
from lightning_novograd.recipes.asr.recognition.trained_run import shown
from lightning_novograd.recipes.asr.recognition.words import words_of

WORST = 12  # utterances that are shown
CONFUSIONS = 12  # of each kind
SOUND = 4 << 20  # bytes of sound in a page, at most; the utterances behind have none
_KINDS = {"equal": "", "insert": "inserted", "delete": "deleted", "substitute": "substituted"}


def render(
    recognizer: Recognizer,
    dataset: SpeechDataset,
    hypotheses: Sequence[str],
    totals: Mapping[str, Any],
    published: Mapping[str, Any] | None = None,
) -> str:
    """One HTML page that needs no other file and runs no script.

    Args:
        recognizer: the model, which hears the worst utterances once more for the times of its words.
        dataset: the utterances.
        hypotheses: what was heard, in their order.
        totals: as in the JSON of ``evaluate``: `checkpoint`, `decoder`, `real_time_factor` and those of `count_errors`.
        published: results of others to compare with, see `read_published`.
    """
    scored = score(dataset.utterances, hypotheses)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "visible": visible, "shown": shown}
    page = environment.get_template("page.html").render(
        totals=totals,
        published=published,
        parameters=recognizer.num_parameters,
        megabytes=_megabytes(totals["checkpoint"]),
        confidence=round(100 * CONFIDENCE),
        drawn="speakers" if drawn_by_speaker(scored) else "utterances",
        lengths=bars(by_length(scored)),
        speakers=bars(by_speaker(scored)),
        units=[
            ("Words", confusions(((one.hypothesis.split(), one.utterance.text.split()) for one in scored), CONFUSIONS)),
            ("Characters", confusions(((one.hypothesis, one.utterance.text) for one in scored), CONFUSIONS)),
        ],
        worst=list(_examples(recognizer, dataset, worst(scored, WORST))),
        kinds=_KINDS,
        longest=LONGEST,
    )
    return page.encode("utf-8", "backslashreplace").decode()  # a name that is not UTF-8


def percent(rate: float | None) -> str:
    """A fraction as it is read."""
    return "–" if rate is None else f"{100 * rate:.2f}\N{NO-BREAK SPACE}%"


def visible(unit: str) -> str:
    """A word or character that can be seen."""
    return "␣" if unit == " " else unit


def bars(parts: Sequence[Part]) -> list[tuple[Part, float]]:
    """Each part with the length of its bar, in percent of the longest."""
    highest = max((part.wer or 0.0 for part in parts), default=0.0)
    return [(part, 100 * (part.wer or 0.0) / highest if highest else 0.0) for part in parts]


def _megabytes(checkpoint: str) -> float | None:
    try:
        return Path(checkpoint).stat().st_size / 1e6
    except OSError:
        return None


def _examples(recognizer: Recognizer, dataset: SpeechDataset, chosen: Sequence[Scored]) -> Any:
    """What the page shows of single utterances."""
    places = {id(utterance): index for index, utterance in enumerate(dataset.utterances)}
    room = SOUND
    for one in chosen:
        wave = np.asarray(dataset[0, places[id(one.utterance)]].wave, dtype=np.float32)
        [path] = recognizer.paths(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))
        words = words_of(path, recognizer.alphabet, recognizer.frame_seconds)
        sound = player(wave, recognizer.sample_rate)
        room -= len(sound)
        yield {
            "scored": one,
            "cut": len(wave) > LONGEST * recognizer.sample_rate,
            "spectrogram": spectrogram(wave, recognizer.sample_rate, words),
            "sound": sound if room >= 0 else None,
        }
