"""What only a Trainer shows: when checkpoints are written, which weights are measured, and what counts as time."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from tiny_speech import MODEL, OPTIM, batch, loader, module, trainer

from lightning_novograd.recipes.asr.training.callbacks import CurveRecorder, NonFiniteGuard, UtteranceRate
from lightning_novograd.recipes.asr.training.module import CTCModule
from lightning_novograd.recipes.asr.training.results import measure
from lightning_novograd.recipes.asr.training.settings import RunSettings
from lightning_novograd.recipes.common.callbacks import BatchSeed
from lightning_novograd.recipes.common.callbacks import rate as rate_file
from lightning_novograd.recipes.common.checkpoints.kept import WholeCheckpoints, build_checkpoints
from lightning_novograd.recipes.common.results import best_checkpoint

TRAIN, DEV = loader([batch(1), batch(2)]), loader([batch(3)])
BLOCKS = ("model", "data", "optim", "trainer", "logger", "checkpoint", "large_batch")


def checkpoints(folder, **checkpoint):
    blocks = {name: {} for name in BLOCKS}
    return build_checkpoints(RunSettings.read({**blocks, "checkpoint": checkpoint}, ""), folder, "dev_wer")


class Marked(CTCModule):
    """Its dev WER is the number of epochs of training, in tenths, from a weight of its own."""

    def __init__(self) -> None:
        super().__init__(MODEL, OPTIM, num_samples=0)
        self.mark = torch.nn.Parameter(torch.zeros(()), requires_grad=False)

    def on_train_epoch_start(self):
        self.mark += 0.1

    def _evaluate(self, batch, split):
        self.log_dict({f"{split}_wer": self.mark.item(), f"{split}_cer": 0.0}, batch_size=2, on_epoch=True)
        return batch.texts


def test_the_weights_that_are_asked_for_are_measured(tmp_path):
    kept, model = checkpoints(tmp_path), Marked()
    made = trainer(kept, enable_checkpointing=True, max_epochs=3, plugins=[WholeCheckpoints()])
    data = SimpleNamespace(has_test_set=True)
    made.fit(model, TRAIN, DEV)
    asked = []
    for name in ("validate", "test"):
        real = getattr(made, name)
        setattr(
            made, name, lambda module, datamodule, real=real, **k: asked.append(datamodule) or real(module, DEV, **k)
        )
    best = best_checkpoint(kept)
    assert best.endswith("epoch000-dev_wer0.1000.ckpt")
    for checkpoint, expected in ((None, 0.3), (best, 0.1)):
        found = measure(made, model, data, checkpoint)
        assert [found["dev_wer"], found["test_wer"]] == pytest.approx([expected, expected])
    assert asked == [data] * 4
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["epoch000-dev_wer0.1000.ckpt", "epoch001-dev_wer0.2000.ckpt", "last.ckpt"]


class Looks(Callback):
    """Notes epoch and step of last.ckpt when each epoch begins, and at the end."""

    def __init__(self, path) -> None:
        self.path, self.seen = path, []

    def on_train_epoch_start(self, trainer, pl_module):
        state = torch.load(self.path, weights_only=True) if self.path.exists() else None
        epochs = state and state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        self.seen.append(state and (epochs, state["global_step"]))

    on_train_end = on_train_epoch_start


def test_the_last_checkpoint_is_of_the_end_of_every_training_epoch(tmp_path):
    """Whether there has been a validation or not."""
    for every in (1, 2):
        folder = tmp_path / str(every)
        looks = Looks(folder / "checkpoints" / "last.ckpt")
        made = trainer(
            [*checkpoints(folder), looks],
            **{"enable_checkpointing": True, "max_epochs": 3, "check_val_every_n_epoch": every},
            plugins=[WholeCheckpoints()],
        )
        made.fit(module(), TRAIN, DEV)
        assert looks.seen == [None, (1, 2), (2, 4), (3, 6)]


def test_a_run_that_goes_on_in_its_folder_replaces_its_last_checkpoint(tmp_path):
    for epochs, resume in ((2, None), (3, "last.ckpt"), (2, "epoch000-dev_wer0.1000.ckpt")):
        made = trainer(checkpoints(tmp_path), enable_checkpointing=True, max_epochs=epochs)
        made.fit(Marked(), TRAIN, DEV, ckpt_path=resume and tmp_path / "checkpoints" / resume, weights_only=True)
        last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
        assert last["global_step"] == 2 * epochs
    assert not list(tmp_path.glob("checkpoints/last-v*"))


def test_time_of_validation_is_no_time_of_training(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(rate_file.time, "perf_counter", lambda: clock.now)

    class Slow(CTCModule):
        def training_step(self, batch, batch_idx):
            clock.now += 1
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            clock.now += 100

        def on_train_epoch_end(self):
            clock.now += 1000

    rate = UtteranceRate()
    made = trainer([rate], max_epochs=2, val_check_interval=1)
    made.fit(Slow(MODEL, OPTIM), TRAIN, DEV)
    assert clock.now == 2 * 2 + 4 * 100 + 2 * 1000
    assert (rate.utterances, rate.seconds, rate.mean) == (8, 4.0, 2.0)


def test_one_point_for_each_step_under_accumulation_with_the_mean_loss_of_its_micro_batches(tmp_path):
    losses = []

    class Notes(CTCModule):
        def training_step(self, batch, batch_idx):
            losses.append(super().training_step(batch, batch_idx))
            return losses[-1]

    curves = CurveRecorder(tmp_path / "curves.png", every_n_steps=1)
    curves.on_fit_end = lambda *args: None
    made = trainer([curves], accumulate_grad_batches=3)
    made.fit(Notes(MODEL, OPTIM), loader([batch(i) for i in range(9)]))
    steps, values = zip(*curves.points["loss"], strict=True)
    assert steps == (1, 2, 3)
    assert values == pytest.approx([sum(loss.item() for loss in losses[i : i + 3]) / 3 for i in (0, 3, 6)])
    assert [step for step, _ in curves.points["lr"]] == [1, 2, 3]


@pytest.mark.parametrize("action", ["raise", "skip"])
def test_16_mixed_on_a_cpu_is_bfloat16(action):
    seen = []

    class Notes(CTCModule):
        def forward(self, *args):
            seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
            return super().forward(*args)

    model, guard = Notes(MODEL, OPTIM), NonFiniteGuard(action)
    model.guard = guard
    with pytest.warns(UserWarning, match="AMP with fp16 is not supported on CPU. Using `precision='bf16-mixed'"):
        made = trainer([guard], precision="16-mixed")
    made.fit(model, TRAIN, DEV)
    assert seen == [torch.bfloat16] * 3
    assert (made.global_step, guard.skipped) == (2, 0)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def draws(rank: int) -> list[float]:
    """A random number for each batch of a fit, as a rank has it."""
    drawn = []

    class Notes(CTCModule):
        def training_step(self, batch, batch_idx):
            drawn.append(torch.rand(()).item())
            return super().training_step(batch, batch_idx)

    class OnRank(BatchSeed):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            place = SimpleNamespace(current_epoch=trainer.current_epoch, global_rank=rank)
            super().on_train_batch_start(place, pl_module, batch, batch_idx)

    trainer([OnRank(7)], max_epochs=2).fit(Notes(MODEL, OPTIM), TRAIN)
    return drawn


def test_a_batch_draws_the_same_noise_in_every_run_and_another_on_every_rank():
    assert draws(0) == draws(0)
    assert len({*draws(0), *draws(1)}) == 8
