"""What a run shows of itself: utterances per second, curves; and the random numbers of its batches."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from tiny_speech import MODEL, OPTIM, loader, trainer
from tiny_speech import batch as speech

from lightning_novograd.recipes.asr.training import callbacks as curves_module
from lightning_novograd.recipes.asr.training.callbacks import CurveRecorder, UtteranceRate, draw_curves
from lightning_novograd.recipes.asr.training.module import CTCModule
from lightning_novograd.recipes.common.callbacks import BatchSeed
from lightning_novograd.recipes.common.callbacks import rate as rate_module

BATCH = SimpleNamespace(texts=["a", "b", "c"], weight=1.0)


class Module:
    """Notes what is logged."""

    def __init__(self) -> None:
        self.logged = []

    def log(self, name, value, **options):
        self.logged.append((name, value, options))


@pytest.fixture
def clock(monkeypatch):
    """`clock.now` is the time; it is moved by hand."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(rate_module.time, "perf_counter", lambda: clock.now)
    return clock


def test_utterances_per_second_without_validation(clock):
    rate, module = UtteranceRate(), Module()
    trainer = SimpleNamespace(world_size=2, training=True)

    def wait(seconds: float) -> None:
        clock.now += seconds

    assert rate.mean == 0.0
    wait(5)  # the sanity check
    rate.on_validation_start(trainer, module)
    assert (rate.seconds, rate.utterances, rate.mean) == (0.0, 0, 0.0)
    rate.on_train_epoch_start(trainer, module)
    wait(2)
    rate.on_train_batch_end(trainer, module, None, BATCH, 0)
    assert module.logged == [("utt_per_s", 3.0, {"prog_bar": True, "batch_size": 3})]
    wait(1)
    rate.on_validation_start(trainer, module)
    wait(50)
    rate.on_validation_end(trainer, module)  # inside the epoch: it goes on
    wait(1)
    rate.on_train_batch_end(trainer, module, None, BATCH, 1)
    assert (rate.utterances, rate.seconds, rate.mean) == (12, 4.0, 3.0)
    wait(2)
    rate.on_train_epoch_end(trainer, module)
    assert rate.mean == 2.0
    wait(50)
    trainer.training = False
    rate.on_validation_end(trainer, module)  # behind the epoch: it does not
    wait(50)
    rate.on_validation_start(trainer, module)
    assert rate.seconds == 6.0


def test_random_numbers_depend_on_seed_epoch_batch_and_rank():
    def seed_of(seed: int, epoch: int, batch_idx: int, rank: int) -> int:
        trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank)
        BatchSeed(seed).on_train_batch_start(trainer, Module(), BATCH, batch_idx)
        return torch.initial_seed()

    places = list(itertools.product((1, 2), repeat=4))
    assert len({seed_of(*place) for place in places}) == len(places)
    # 64 bits, from all of the place
    assert seed_of(1, 2, 3, 4) == int(np.random.SeedSequence([1, 2, 3, 4]).generate_state(1, np.uint64)[0])


def trainer_at(step: int, lr: float = 0.5, **changes) -> SimpleNamespace:
    optimizer = SimpleNamespace(param_groups=[{"lr": lr}, {"lr": 7.0}])
    state = {
        "global_step": step,
        "accumulate_grad_batches": 1,
        "optimizers": [optimizer],
        "state": SimpleNamespace(fn="fit"),
        "sanity_checking": False,
        "callback_metrics": {"dev_wer": torch.tensor(0.25)},
        "is_global_zero": True,
    }
    return SimpleNamespace(**{**state, **changes})


def test_points_of_loss_and_lr_are_kept_once_every_so_many_steps(tmp_path):
    curves = CurveRecorder(tmp_path / "curves.png", every_n_steps=2)
    outputs = [{"loss": torch.tensor(4.0)}, torch.tensor(3.0), 2.5, {"loss": torch.tensor(2.0)}, {"loss": 1.0}]
    for step, output in zip((1, 2, 2, 3, 4), outputs, strict=True):  # accumulation: step 2 is seen twice
        curves.on_train_batch_end(trainer_at(step, lr=step / 8), Module(), output, BATCH, 0)
    assert curves.points == {"loss": [(2, 3.0), (4, 1.0)], "lr": [(2, 0.25), (4, 0.5)], "wer": []}
    assert CurveRecorder(tmp_path).every_n_steps == 10


def test_a_point_is_the_mean_over_the_utterances_of_its_step(tmp_path):
    """Micro-batches by seconds have different numbers of utterances."""
    losses = {}

    class Weighs(CTCModule):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            losses[batch_idx] = loss.item() / batch.weight
            return loss

    curves = CurveRecorder(tmp_path / "curves.png", every_n_steps=2)
    batches = [speech(i, size)._replace(weight=size / 2) for i, size in enumerate((2, 2, 1, 3, 2, 2, 3, 1))]
    made = trainer([curves], accumulate_grad_batches=2, max_epochs=1)
    model = Weighs(MODEL, OPTIM, num_samples=0)
    made.fit(model, loader(batches))
    expected = [(2, (losses[2] + 3 * losses[3]) / 4), (4, (3 * losses[6] + losses[7]) / 4)]
    assert [step for step, _ in curves.points["loss"]] == [2, 4]
    assert dict(curves.points["loss"]) == pytest.approx(dict(expected))


def test_the_dev_wer_is_kept_in_training_only(tmp_path):
    curves = CurveRecorder(tmp_path)
    for changes in (
        {"state": SimpleNamespace(fn="validate")},
        {"sanity_checking": True},
        {"callback_metrics": {}},
    ):
        curves.on_validation_epoch_end(trainer_at(3, **changes), Module())
    assert curves.points["wer"] == []
    curves.on_validation_epoch_end(trainer_at(3), Module())
    assert curves.points["wer"] == [(3, 0.25)]
    assert isinstance(curves.points["wer"][0][1], float)


def test_the_points_travel_in_the_checkpoint(tmp_path):
    curves, resumed = CurveRecorder(tmp_path), CurveRecorder(tmp_path)
    curves.points = {"loss": [(1, 2.0)], "lr": [(1, 0.5)], "wer": [(8, 0.25)]}
    resumed.load_state_dict({"points": {name: [list(p) for p in rows] for name, rows in curves.points.items()}})
    assert resumed.points == curves.points
    assert curves.state_dict() == {"points": curves.points}


def test_one_rank_draws(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves_module, "draw_curves", lambda *args: drawn.append(args))
    curves = CurveRecorder(tmp_path / "curves.png")
    curves.on_fit_end(trainer_at(1, is_global_zero=False), Module())
    assert not drawn
    curves.on_fit_end(trainer_at(1), Module())
    assert drawn == [(curves.points, tmp_path / "curves.png")]


def test_the_picture(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: saved.append((figure, path, options)))
    points = {"loss": [(1, 3.0), (2, 2.0)], "wer": [(2, 0.5)], "lr": [(1, 0.1), (2, 0.2)]}
    draw_curves(points, tmp_path / "curves.png")
    [(figure, path, options)] = saved
    assert (path, options) == (tmp_path / "curves.png", {"dpi": 120})
    assert figure.get_size_inches().tolist() == [8, 9]
    assert figure.get_layout_engine().__class__.__name__ == "ConstrainedLayoutEngine"
    [loss, wer, lr] = figure.axes
    lines = [axes.lines[0] for axes in figure.axes]
    assert [axes.get_ylabel() for axes in figure.axes] == ["CTC loss (training)", "WER (dev), %", "learning rate"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "optimizer step"]
    assert [axes.get_ylim()[0] for axes in figure.axes] == [0, 0, 0]
    assert [line.get_marker() for line in lines] == ["None", "o", "None"]
    assert [list(line.get_xdata()) for line in lines] == [[1, 2], [2], [1, 2]]
    assert [list(line.get_ydata()) for line in lines] == [[3.0, 2.0], [50.0], [0.1, 0.2]]
    assert all(loss.get_shared_x_axes().joined(loss, axes) for axes in (wer, lr))
    grid = loss.get_xgridlines()[0]
    assert grid.get_visible()
    assert grid.get_alpha() == 0.3
