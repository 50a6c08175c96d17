"""Lines of progress: when, with which numbers, and for whom."""

import logging
from types import SimpleNamespace

import pytest
import torch
from tiny_speech import batch, loader, module, trainer

from lightning_novograd.recipes.asr.training.callbacks import ProgressLog, UtteranceRate
from lightning_novograd.recipes.common.callbacks import progress as progress_file
from lightning_novograd.recipes.common.callbacks.progress import shown_time

WHOLE = SimpleNamespace(weight=1.0)


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=50.0)
    monkeypatch.setattr(progress_file.time, "monotonic", lambda: clock.now)
    return clock


def at(step: int, **changes) -> SimpleNamespace:
    state = {
        "global_step": step,
        "current_epoch": 2,
        "max_epochs": 4,
        "estimated_stepping_batches": 20,
        "accumulate_grad_batches": 2,
        "is_global_zero": True,
        "sanity_checking": False,
        "state": SimpleNamespace(fn="fit"),
        "callback_metrics": {"train_wer": torch.tensor(0.125)},
    }
    return SimpleNamespace(**{**state, **changes})


def lines(caplog) -> list[str]:
    said = [record.getMessage() for record in caplog.records if record.name == progress_file.__name__]
    caplog.clear()
    return said


def test_lines_at_an_interval(clock, caplog):
    caplog.set_level(logging.INFO, logger="lightning_novograd")
    log = ProgressLog(SimpleNamespace(mean=12.34), interval=30, extra={"file_only": True})
    log.on_train_start(at(10), None)
    for step, seconds, loss in ((10, 20, 1.0), (11, 5, 2.0), (11, 4, float("nan")), (12, 1, 1.5)):
        clock.now += seconds
        assert not lines(caplog)
        log.on_train_batch_end(at(step), None, {"loss": torch.tensor(loss)}, WHOLE, 0)
    assert caplog.records[0].file_only
    # Lightning halves the losses of two micro-batches; 30 s for 2 steps, and 8 to go
    assert lines(caplog) == ["epoch 3/4, step 12/20, loss 3, WER 12.50 %, 12.3 utterances/s, 0:02:00 left"]
    clock.now += 29
    log.on_train_batch_end(at(13), None, {"loss": torch.tensor(float("inf"))}, WHOLE, 0)
    assert not lines(caplog)
    clock.now += 1
    endless = {"max_epochs": -1, "estimated_stepping_batches": float("inf"), "callback_metrics": {}}
    log.on_train_batch_end(at(13, **endless), None, {"loss": torch.tensor(float("nan"))}, WHOLE, 0)
    assert lines(caplog) == ["epoch 3, step 13, 12.3 utterances/s"]


def test_the_loss_is_the_mean_over_utterances(clock, caplog):
    """A micro-batch whose loss is not finite leaves with its weight."""
    caplog.set_level(logging.INFO, logger="lightning_novograd")
    log = ProgressLog(SimpleNamespace(mean=1.0), interval=30)
    log.on_train_start(at(10), None)
    for weight, loss in ((1.5, 2.0), (0.5, float("nan")), (1.5, 2.0)):
        clock.now += 10
        outputs = {"loss": torch.tensor(weight * loss / 2)}
        log.on_train_batch_end(at(10), None, outputs, SimpleNamespace(weight=weight), 0)
    assert "step 10/20, loss 2, WER" in lines(caplog)[0]


def test_a_line_at_every_validation_of_the_fit(clock, caplog):
    caplog.set_level(logging.INFO, logger="lightning_novograd")
    log = ProgressLog(SimpleNamespace(mean=1.0))
    log.on_train_start(at(0), None)
    dev = {"dev_loss": torch.tensor(2.5), "dev_wer": torch.tensor(0.5), "dev_cer": torch.tensor(0.25)}
    for changes in ({"sanity_checking": True}, {"state": SimpleNamespace(fn="validate")}, {"is_global_zero": False}):
        log.on_validation_end(at(5, callback_metrics=dev, **changes), None)
    assert not lines(caplog)
    clock.now += 10
    log.on_validation_end(at(5, callback_metrics=dev), None)
    assert lines(caplog) == [
        "epoch 3/4, step 5/20, 1.0 utterances/s, 0:00:30 left, dev: loss 2.5, WER 50.00 %, CER 25.00 %"
    ]


def test_in_a_fit(caplog):
    caplog.set_level(logging.INFO, logger="lightning_novograd")
    rate = UtteranceRate()
    made = trainer([rate, ProgressLog(rate, interval=1e-9)], max_epochs=2)
    made.fit(module(), loader([batch(1), batch(2)]), loader([batch(3)]))
    said = lines(caplog)
    places = [(1, 1), (1, 2), (1, 2), (2, 3), (2, 4), (2, 4)]
    assert [line[:20] for line in said] == [f"epoch {epoch}/2, step {step}/4," for epoch, step in places]
    assert ["dev: loss" in line for line in said] == [False, False, True] * 2


def test_times():
    assert [shown_time(s) for s in (0, 59.6, 3599.4, 360000)] == ["0:00:00", "0:01:00", "0:59:59", "100:00:00"]
