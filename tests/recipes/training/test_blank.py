"""A model that transcribes nothing: what is counted, and which cause is named."""

import logging

import pytest
import torch
from speech_files import write_corpus
from speech_runs import manifests, train

from lightning_novograd.recipes.asr.data.dataset import Batch
from lightning_novograd.recipes.asr.training import run as run_file
from lightning_novograd.recipes.asr.training.blank import Progress, Seen, diagnose, look_at
from lightning_novograd.recipes.asr.training.module import CTCModule

BLANK = Seen(utterances=10, blank=9.9)
LATE = Progress(steps=5000, total=9000, lr=0.05, base_lr=0.05, losses=[3.0, 2.9])


def test_what_is_counted():
    # three utterances of 4, 4 and 2 valid frames; the blank is class 2
    probs = torch.full((3, 4, 3), 0.25)
    probs[..., 2] = 0.5
    probs[2, 2:, 2] = 1.0  # padding
    waves = torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.5, 0.5], [0.1, 0.1, 0.0]])
    targets = torch.tensor([[0, 0, 1], [0, 1, 0], [1, 0, 0]])
    batch = Batch(waves, torch.tensor([3, 3, 2]), targets, torch.tensor([3, 3, 1]), ["aab", "aba", "b"])
    seen = look_at(probs.log(), torch.tensor([4, 4, 2]), ["", " ", "b"], batch, blank=2)
    # aab needs a blank between its first two
    assert (seen.utterances, seen.spoken, seen.tight, seen.silent) == (3, 1, 1, 2)
    assert seen.blank == pytest.approx(1.5)
    assert seen + Seen(1, 1, 0.5, 1, 1) == Seen(4, 2, pytest.approx(2.0), 2, 3)


@pytest.mark.parametrize(
    ("seen", "progress", "cause", "why"),
    [
        (BLANK._replace(silent=5), LATE, "silent audio", "5 of 10 utterances"),
        (BLANK._replace(tight=9), LATE, "few frames", "9 of 10 utterances need more than 90%"),
        (BLANK, LATE._replace(lr=0.0, base_lr=0.0), "learning rate 0", "optim.lr is 0"),
        (BLANK, LATE._replace(steps=100, lr=0.01), "warmup", "0.01 of 0.05 after 100 steps"),
        (BLANK, LATE._replace(losses=[3.0, 2.9, 3.6]), "learning rate too high", "from 2.9 to 3.6"),
        (BLANK, LATE._replace(losses=[3.0, 2.9, 2.8]), "too few steps", "still falls, from 2.9 to 2.8"),
        (BLANK, LATE._replace(steps=40, losses=[3.0]), "too few steps", "there were 40"),
        (BLANK, LATE._replace(losses=[3.0, 2.99, 2.98]), "learning rate too low", "hardly moved in 5000 steps"),
        (BLANK, LATE._replace(losses=[9.0, 2.9, 2.89]), "texts of other audio", "99% of the probability"),
        (BLANK, LATE._replace(losses=[2.9]), "texts of other audio", "no longer falls"),
    ],
)
def test_causes(seen, progress, cause, why):
    name, sentence = diagnose(seen, progress)
    assert name == cause
    assert why in sentence


def test_a_model_that_says_anything_is_not_looked_at():
    assert diagnose(BLANK._replace(spoken=1), LATE) is None
    assert diagnose(Seen(), LATE) is None


class Mute(CTCModule):
    """Whose blank always wins."""

    def forward(self, wave_BS, wave_lens_B):
        log_probs_BTV, lens_B = super().forward(wave_BS, wave_lens_B)
        return (log_probs_BTV + 9 * (torch.arange(log_probs_BTV.shape[-1]) == self.alphabet.blank)).log_softmax(
            -1
        ), lens_B


def test_a_run_warns_once_for_each_cause(tmp_path, caplog, monkeypatch):
    corpus = write_corpus(tmp_path, "train", 8)
    monkeypatch.setattr(run_file, "CTCModule", Mute)
    with caplog.at_level(logging.WARNING, logger="lightning_novograd"):
        train(tmp_path / "run", [*manifests(corpus), "optim.lr=0.0001", "data.num_workers=0"])
    [said] = [r.getMessage() for r in caplog.records if "transcribes nothing" in r.getMessage()]
    assert "in every utterance of the dev set. Most likely: too few steps; there were 2, " in said
    assert "The usual causes: too few steps so far, a learning rate that is too high" in said
    again = CTCModule.load_from_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt", map_location="cpu")
    assert (again._blank_causes, len(again._dev_losses)) == ({"too few steps"}, 2), "a run that goes on says it no more"
