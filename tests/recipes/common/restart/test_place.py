"""A run that goes on from a checkpoint ends as the one that was not interrupted, wherever that was saved."""

import csv
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from tiny_speech import MODEL, OPTIM, batch, trainer

from lightning_novograd.recipes.asr.training.module import CTCModule
from lightning_novograd.recipes.asr.training.settings import RunSettings
from lightning_novograd.recipes.common.checkpoints.kept import StepCheckpoint
from lightning_novograd.recipes.common.data.loader import ResumableLoader
from lightning_novograd.recipes.common.data.sampler import GlobalBatchSampler
from lightning_novograd.recipes.common.data.steps import GlobalBatch
from lightning_novograd.recipes.common.loggers import build_loggers
from lightning_novograd.recipes.common.restart.place import (
    RestartPoint,
    compare_split,
    relocated,
    remove_older_requeued,
)

BLOCKS = ("model", "data", "optim", "trainer", "logger", "checkpoint", "large_batch")


class Saves(Checkpoint):
    """Saves at a moment; notes the order of hooks. As a checkpoint callback it comes behind the average's."""

    def __init__(self, path, moment) -> None:
        self.path, self.moment, self.seen = path, moment, []

    def _come(self, trainer, *moment):
        place = (*moment, trainer.current_epoch, trainer.global_step)
        self.seen.append(place)
        if place == self.moment:
            trainer.save_checkpoint(self.path)
            self.seen.clear()

    def on_train_batch_end(self, trainer, *args):
        self._come(trainer, "batch", args[-1])

    def on_validation_start(self, trainer, pl_module):
        self._come(trainer, "validation")

    def on_validation_batch_end(self, trainer, *args):
        self._come(trainer, "validated", args[4] if len(args) > 4 else args[-1])

    def on_train_epoch_end(self, trainer, pl_module):
        self._come(trainer, "epoch end")


class Items(torch.utils.data.Dataset):
    def __getitem__(self, key):
        return key[1]


def data():
    sampler = GlobalBatchSampler([1.0] * 8, batch_size=1, accumulate=2)
    return ResumableLoader(Items(), sampler, lambda items: batch(items[0], size=2))


def fit(folder, moment=None, resume=None, **options):
    """Two epochs of four optimizer steps of two micro-batches, and two batches to validate on."""
    settings = RunSettings.read({**{name: {} for name in BLOCKS}, "logger": {"csv": {}}}, "")
    saves = Saves(folder / "saved.ckpt", moment)
    torch.manual_seed(0)
    model = CTCModule(MODEL, {**OPTIM, "ema": 0.9}, num_samples=0)
    kinds = {"accumulate_grad_batches": 2, "max_epochs": 2, "log_every_n_steps": 1, "enable_checkpointing": True}
    made = trainer([RestartPoint(), saves], **{**kinds, **options, "logger": build_loggers(settings, folder)})
    dev = torch.utils.data.DataLoader([batch(90), batch(91)], batch_size=None)
    made.fit(model, data(), dev, ckpt_path=resume, weights_only=True)
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return saves.seen, rows, {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("moment", "options"),
    [
        (("batch", 3, 0, 2), {}),
        (("batch", 7, 0, 4), {}),  # the last one of an epoch: its validation is still to come
        (("batch", 7, 0, 4), {"check_val_every_n_epoch": 2}),  # and where there is none, the end of the epoch is
        (("batch", 3, 0, 2), {"val_check_interval": 4}),
        (("batch", 7, 1, 8), {"val_check_interval": 4}),
        (("validated", 0, 0, 4), {}),
        (("validated", 1, 1, 8), {"val_check_interval": 4}),
        (("epoch end", 0, 4), {}),
        (("batch", 7, 0, 4), {"max_steps": 6}),
    ],
    ids=lambda value: "-".join(map(str, value)) or "plain",
)
def test_training_goes_on_where_it_was_saved(tmp_path, moment, options):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for folder in (whole, resumed):
        folder.mkdir()
    seen, rows, weights = fit(whole, moment, **options)
    # the folder of a run that was killed later has rows beyond the checkpoint
    (resumed / "metrics.csv").write_bytes((whole / "metrics.csv").read_bytes())
    again, its_rows, its_weights = fit(resumed, resume=whole / "saved.ckpt", **options)
    if moment[0] == "validated":  # begun anew
        assert [place for place in again if place[0] != "validation"][: moment[1] + 1] == [
            ("validated", index, *moment[2:]) for index in range(moment[1] + 1)
        ]
        again = again[again.index(moment) + 1 :]
    assert again == seen
    assert its_rows == rows
    assert all(torch.equal(its_weights[name], value) for name, value in weights.items())


def test_a_plateau_is_seen_in_the_epoch_that_a_run_goes_on_in():
    looped = SimpleNamespace(fit_loop=SimpleNamespace(_restarting=True))
    RestartPoint().on_train_epoch_end(looped, None)
    assert looped.fit_loop._restarting is False


def test_no_second_checkpoint_in_the_middle_of_the_next_window(tmp_path):
    """A run that goes on at a step that is saved has it already."""
    steps = []
    for resume in (None, tmp_path / "step0000002.ckpt"):
        by_step = StepCheckpoint(tmp_path, 2)
        by_step._save_checkpoint = lambda made, path, save=by_step._save_checkpoint: (
            steps.append((made.global_step, made.fit_loop.epoch_loop.batch_progress.current.ready)),
            save(made, path),
        )
        by_step.remove_others = by_step._remove_checkpoint = lambda *args: None
        made = trainer([RestartPoint(), by_step], enable_checkpointing=True, accumulate_grad_batches=2)
        torch.manual_seed(0)
        made.fit(CTCModule(MODEL, OPTIM, num_samples=0), data(), ckpt_path=resume, weights_only=True)
    assert steps == [(2, 4), (4, 8), (4, 8)]


def test_the_newest_step_is_kept_and_what_a_killed_run_has_left_goes(tmp_path):
    for name in ("step0000001.ckpt", "step0000003-v1.ckpt", "stepping.ckpt", "last.ckpt", "step0000009.ckpt"):
        (tmp_path / name).touch()
    by_step = StepCheckpoint(tmp_path, None)
    assert isinstance(by_step, ModelCheckpoint)
    by_step.remove_others("step0000009.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "step0000009.ckpt", "stepping.ckpt"]
    by_step.remove_others(None)
    assert not (tmp_path / "step0000009.ckpt").exists()
    assert by_step.state_dict() == {}


@pytest.mark.parametrize(("saved", "now", "expected"), [((1, 4), (2, 2), 4), ((2, 2), (1, 4), 8), ((1, 2), (2, 2), 4)])
def test_another_split_counts_in_its_own_micro_batches(caplog, saved, now, expected):
    counts = dict.fromkeys(("ready", "started", "processed"), 8 if saved[1] == 4 else 5 if saved == (1, 2) else 4)
    progress = {"current": {**counts, "completed": counts["ready"] - 1}, "total": dict(counts, completed=0)}
    loops = {"epoch_loop.batch_progress": {**progress, "is_last_batch": False}}
    its = SimpleNamespace(world_size=now[0], accumulate_grad_batches=now[1])
    compare_split({"world_size": saved[0], "accumulate": saved[1]}, its, loops)
    assert loops["epoch_loop.batch_progress"]["current"] == {
        **dict.fromkeys(("ready", "started", "processed"), expected),
        "completed": expected - 1,
    }
    assert caplog.messages[0].startswith(f"the checkpoint is of {saved[0]} ranks and {saved[1]} accumulated")


@pytest.mark.parametrize(
    ("batch", "begins", "says"),
    [
        (
            GlobalBatch(16, 1, 1),
            "the checkpoint is of a global batch of 64 utterances (32 x 2 ranks x 1 accumulated)",
            "size=64 keeps it",
        ),
        (GlobalBatch(32, 1, 2), "the checkpoint is of 2 ranks and 1 accumulated", "the global batch is the same"),
    ],
)
def test_another_global_batch_is_said_with_both_numbers(caplog, batch, begins, says):
    saved = GlobalBatchSampler([1.0] * 128, 32, world_size=2).state_dict()
    loops = {"epoch_loop.batch_progress": {"is_last_batch": True}}
    its = SimpleNamespace(world_size=batch.world_size, accumulate_grad_batches=batch.accumulate)
    compare_split(saved, its, loops, batch)
    [message] = caplog.messages
    assert message.startswith(begins)
    assert says in message
    caplog.clear()
    compare_split(saved, SimpleNamespace(world_size=2, accumulate_grad_batches=1), loops, GlobalBatch(32, 2))
    assert not caplog.messages


def test_only_the_newest_of_slurms_checkpoints_stays(tmp_path):
    for number in (1, 2, 9, 10):
        (tmp_path / f"hpc_ckpt_{number}.ckpt").touch()
    remove_older_requeued(tmp_path, tmp_path / "hpc_ckpt_2.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hpc_ckpt_10.ckpt", "hpc_ckpt_2.ckpt"]
    remove_older_requeued(tmp_path, tmp_path / "checkpoints" / "last.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["hpc_ckpt_10.ckpt"]


def scores(folder, **by_name):
    return {f"{folder}/{name}.ckpt": torch.tensor(score) for name, score in by_name.items()}


def state_in(folder, **changes):
    best = {"best_model_path": f"{folder}/b.ckpt", "best_model_score": torch.tensor(0.25)}
    worst = {"kth_best_model_path": f"{folder}/a.ckpt", "kth_value": torch.tensor(0.5), "last_model_path": ""}
    kept = scores(folder, a=0.5, b=0.25)
    return {"monitor": "dev_wer", "dirpath": folder, "best_k_models": kept, **best, **worst, **changes}


def test_the_best_epochs_are_known_where_the_folder_has_moved(tmp_path):
    here = str(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.ckpt").touch()
    assert relocated(state_in("/was"), here, "min") == state_in(here)
    assert relocated(state_in(here), here, "min") == state_in(here)
    (tmp_path / "b.ckpt").unlink()  # of a run that has gone back
    left = {"best_model_path": f"{here}/a.ckpt", "best_model_score": torch.tensor(0.5)}
    for folder in ("/was", here):
        assert relocated(state_in(folder), here, "min") == state_in(here, best_k_models=scores(here, a=0.5), **left)
    (tmp_path / "other").mkdir()
    (tmp_path / "b.ckpt").touch()
    anew = relocated(state_in(here), f"{here}/other", "min")
    assert (anew["best_k_models"], anew["kth_best_model_path"]) == ({}, "")
    assert anew["best_model_path"] == f"{here}/b.ckpt", "until there is one in the other folder"


def test_a_run_that_was_moved_keeps_its_best_epoch(tmp_path):
    """Its first epoch stays the best, and is what checkpoint.test=best measures."""

    class Scored(CTCModule):
        def on_validation_epoch_end(self):
            self.log("score", float(self.trainer.current_epoch))

    def run(folder, resume=None, epochs=1):
        name = {"filename": "epoch{epoch}", "auto_insert_metric_name": False, "enable_version_counter": False}
        best = ModelCheckpoint(folder, monitor="score", mode="min", save_top_k=1, **name)
        last = ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        kinds = {"max_epochs": epochs, "enable_checkpointing": True, "accumulate_grad_batches": 2}
        made = trainer([RestartPoint(), best, last], **kinds)
        dev = torch.utils.data.DataLoader([batch(90)], batch_size=None)
        made.fit(Scored(MODEL, OPTIM, num_samples=0), data(), dev, ckpt_path=resume, weights_only=True)
        return best

    run(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    best = run(tmp_path / "moved", tmp_path / "moved" / "last.ckpt", epochs=2)
    assert best.best_model_path == str(tmp_path / "moved" / "epoch0.ckpt")
    assert sorted(path.name for path in (tmp_path / "moved").iterdir()) == ["epoch0.ckpt", "last.ckpt"]
