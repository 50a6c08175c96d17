"""The Lightning module: what it logs of a batch, when, and which transcripts it shows."""

import logging
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.data.dataset import Batch
from lightning_novograd.recipes.asr.training import module as module_file
from lightning_novograd.recipes.asr.training.loss import ctc_loss, ctc_losses
from lightning_novograd.recipes.asr.training.module import CTCModule
from lightning_novograd.recipes.common.batches.memory import count_parameters

BLOCK = {"filters": 8, "kernel": 11, "stride": 2, "residual": False}
MODEL = {"labels": ["a", "b"], "encoder": {"jasper": [BLOCK]}}
TEXTS = ["ab", "ba"]
BATCH = Batch(
    0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(0)),
    torch.tensor([8000, 6400]),
    torch.tensor([[0, 1], [1, 0]]),
    torch.tensor([2, 2]),
    TEXTS,
)


@pytest.fixture
def logged(monkeypatch):
    """Calls of `log` and `log_dict`: names, and options."""
    calls = []
    monkeypatch.setattr(CTCModule, "log", lambda self, name, value, **options: calls.append((name, value, options)))
    monkeypatch.setattr(CTCModule, "log_dict", lambda self, values, **options: calls.append((values, options)))
    return calls


def module_at(step: int = 0, every_n_steps: int = 3, loggers=(), **options) -> CTCModule:
    """A module inside of a Trainer that has taken `step` steps."""
    module = CTCModule(MODEL, **options).eval()
    module._trainer = SimpleNamespace(log_every_n_steps=every_n_steps, global_step=step, loggers=list(loggers))
    return module


def loss_of(module: CTCModule) -> torch.Tensor:
    log_probs, lens = module(BATCH.wave_BS, BATCH.wave_lens_B)
    return ctc_loss(log_probs, lens, BATCH.targets_BU, BATCH.target_lens_B, 2)


def test_a_batch_weighs_what_it_says(logged):
    """Micro-batches of unequal size: the mean of their weighted losses is the mean over utterances."""
    module = module_at()
    loss = loss_of(module)
    assert torch.equal(module.training_step(BATCH._replace(weight=0.5), 1), 0.5 * loss)
    assert torch.equal(logged[0][1], loss), "the log has the mean of the batch"
    module._evaluate(BATCH._replace(weight=0.5), "dev")
    torch.testing.assert_close(logged[1][1].compute(), loss.detach())


def test_by_volume_losses_are_means_over_characters(logged):
    """So that those of training and of dev can be compared, however long the texts."""
    module = module_at()
    batch = BATCH._replace(targets_BU=torch.tensor([[0, 1], [1, 9]]), target_lens_B=torch.tensor([2, 1]), weight=0.5)
    module.reduction = "mean_volume"
    log_probs, lens = module(batch.wave_BS, batch.wave_lens_B)
    losses = ctc_losses(log_probs, lens, batch.targets_BU, batch.target_lens_B, 2)
    assert torch.equal(module.training_step(batch, 1), 0.5 * (losses.sum() / 3))
    assert torch.equal(logged[0][1], losses.sum() / 3)
    for _ in range(2):  # batches
        module._evaluate(batch, "dev")
    torch.testing.assert_close(logged[1][1].compute(), losses.sum().detach() / 3)


def test_the_reduction_is_the_models():
    assert CTCModule(MODEL).reduction == "mean_batch"
    assert CTCModule({**MODEL, "ctc_reduction": "sum"}).reduction == "sum"
    with pytest.raises(
        ConfigError, match=r"^model\.ctc_reduction: 'mean_volum' is unknown; did you mean 'mean_volume'"
    ):
        CTCModule({**MODEL, "ctc_reduction": "mean_volum"})


@pytest.mark.parametrize(
    ("step", "batch_idx", "has_wer"),
    [(0, 0, True), (7, 0, True), (0, 1, False), (1, 1, False), (2, 1, True), (3, 1, False), (5, 4, True)],
)
def test_training_logs_the_loss_always_and_the_wer_where_it_is_seen(logged, step, batch_idx, has_wer):
    module = module_at(step)
    loss = module.training_step(BATCH, batch_idx)
    assert torch.equal(loss, loss_of(module))
    expected = [("train_loss", loss, {"prog_bar": True, "batch_size": 2})]
    assert logged[0] == expected[0]
    assert [(name, options) for name, _, options in logged[1:]] == [
        ("train_wer", {"prog_bar": True, "batch_size": 2})
    ] * has_wer
    assert module.train_wer.units == 2 * has_wer


@pytest.mark.parametrize("split", ["dev", "test"])
def test_evaluation_logs_loss_and_rates_over_the_epoch(logged, split):
    module = module_at()
    (module.validation_step if split == "dev" else module.test_step)(BATCH, 1)
    wer, cer = getattr(module, f"{split}_wer"), getattr(module, f"{split}_cer")
    (name, loss, options), (rates, rate_options) = logged
    assert (name, options) == (f"{split}_loss", {"batch_size": 2, "on_epoch": True})
    torch.testing.assert_close(loss.compute(), loss_of(module).detach())
    assert rates == {f"{split}_wer": wer, f"{split}_cer": cer}
    assert rate_options == {"batch_size": 2, "on_epoch": True, "prog_bar": True}
    assert (wer.unit, cer.unit) == ("word", "char")
    assert (wer.units, cer.units) == (2, 4)


@pytest.mark.parametrize(("options", "shown"), [({}, 2), ({"num_samples": 1}, 1), ({"num_samples": 0}, 0)])
def test_the_first_transcripts_of_the_first_batch_are_shown(logged, caplog, options, shown):
    written = []
    experiment = SimpleNamespace(add_text=lambda *args: written.append(args))
    board = pl.loggers.TensorBoardLogger.__new__(pl.loggers.TensorBoardLogger)
    board._experiment = experiment
    module = module_at(7, loggers=[pl.loggers.CSVLogger("."), board], **options)
    module._evaluate = lambda *args: ["ab", "bb"]
    with caplog.at_level(logging.INFO, logger=module_file.__name__):
        module.validation_step(BATCH, 1)
        assert not caplog.records
        module.validation_step(BATCH, 0)
    pairs = list(zip(TEXTS, ["ab", "bb"], strict=True))[:shown]
    lines = [line for said, heard in pairs for line in (f"reference  {said}", f"hypothesis {heard}")]
    assert [record.getMessage() for record in caplog.records] == lines
    assert written == [("transcript", f"    reference   {said}\n    hypothesis  {heard}", 7) for said, heard in pairs]


def test_what_the_checkpoint_needs_travels_in_it():
    optim = {"name": "novograd", "lr": 0.1}
    module = CTCModule(MODEL, optim)
    assert module.hparams == {"model": MODEL, "optim": optim, "num_samples": 3}
    assert module.num_samples == 3
    assert (module.optim_config.name, module.optim_config.args) == ("NovoGrad", {"lr": 0.1})
    assert module.alphabet is module.model.alphabet


def test_parameters_that_are_trained_are_counted():
    module = torch.nn.Linear(3, 2)
    assert count_parameters(module) == 8
    module.bias.requires_grad_(False)
    assert count_parameters(module) == 6
