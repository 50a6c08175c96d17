"""A Trainer that fits again: the length of its schedule against the steps that are made, on whatever data."""

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from tiny_fit import Net, loader, trainer

from lightning_novograd.config import parse_optim
from lightning_novograd.large_batch import solve_batch_ramp
from lightning_novograd.training.callbacks.batch_ramp import BatchRampScheduler
from lightning_novograd.training.run_length import run_length

COSINE = {"name": "sgd", "lr": 0.1, "sched": {"name": "cosine"}}


class StopAt(pl.Callback):
    """Ends the first fit at `step`, in the middle of an epoch: cleanly, or not."""

    def __init__(self, step: int, cleanly: bool) -> None:
        self.step, self.cleanly = step, cleanly

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step and not self.cleanly:
            raise RuntimeError("out of memory")
        trainer.should_stop = trainer.global_step == self.step


def again(first, second, **settings):
    """Lengths of the schedules and steps of a Trainer's two fits, each of (batches, limits of the Trainer)."""
    run, lengths, made, steps = trainer(**settings), [], [], 0
    for batches, limits in (first, second):
        for name, limit in limits.items():
            setattr(run.fit_loop if name == "max_epochs" else run.fit_loop.epoch_loop, name, limit)
        run.should_stop = False
        try:
            run.fit(Net(COSINE), loader(2 * batches))
        except RuntimeError as error:
            assert "out of memory" in str(error)  # noqa: PT017
        lengths.append(run.lr_scheduler_configs[0].scheduler.arguments["max_steps"])
        made.append(run.global_step - steps)
        steps = run.global_step
    return lengths, made


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param((10, {"max_epochs": 2}), (5, {"max_epochs": 4}), [20, 10], id="a shorter loader"),
        pytest.param((20, {"max_epochs": 2}), (2, {"max_epochs": 4}), [40, 4], id="far shorter"),
        pytest.param((5, {"max_epochs": 2}), (10, {"max_epochs": 4}), [10, 20], id="a longer one"),
        pytest.param((10, {"max_steps": 6}), (4, {"max_steps": 20}), [6, 14], id="steps"),
        pytest.param(
            (10, {"max_epochs": 3, "max_steps": 6}), (4, {"max_steps": 99}), [6, 8], id="stopped by steps in an epoch"
        ),
        pytest.param(
            (10, {"max_epochs": 2}), (4, {"max_epochs": 9, "max_steps": 26}), [20, 6], id="steps end before epochs"
        ),
    ],
)
def test_the_length_is_of_what_the_limits_leave_on_the_data_of_this_fit(first, second, expected):
    settings = {"max_epochs": 99} if "max_epochs" not in first[1] else {}
    assert again(first, second, **settings) == (expected, expected)


@pytest.mark.parametrize("cleanly", [True, False], ids=["should_stop", "exception"])
@pytest.mark.parametrize("step", [5, 15])
def test_half_an_epoch_counts_as_lightning_counts_it(step, cleanly):
    lengths, made = again((10, {"max_epochs": 3}), (10, {}), callbacks=[StopAt(step, cleanly)])
    assert (lengths[0], made[0]) == (30, step)
    epochs_over = step // 10 + cleanly
    assert lengths[1] == made[1] == 30 - 10 * epochs_over


def test_accumulation_that_changes_at_epochs_goes_on():
    expected = ([10 + 10, 3 + 3], [10 + 10, 3 + 3])
    schedule = GradientAccumulationScheduler({2: 4})
    assert again((10, {"max_epochs": 2}), (10, {"max_epochs": 4}), callbacks=[schedule]) == expected


def test_a_batch_ramp_goes_on():
    ramp = solve_batch_ramp([[0, 2], [8, 8]], devices=1, per_device_batch_size=2)
    lengths, made = again((10, {"max_epochs": 1}), (12, {"max_epochs": 3}), callbacks=[BatchRampScheduler(ramp)])
    assert lengths == made == [8 + 1, 3 + 3]


def test_epochs_of_the_block_are_counted_in_this_fit():
    config = parse_optim({**COSINE, "sched": {"name": "cosine", "max_epochs": 2}})
    run = trainer(max_epochs=2, callbacks=[GradientAccumulationScheduler({2: 5})])
    run.fit(Net(COSINE), loader(20))
    run.fit_loop.max_epochs = 5
    length = run_length(run, config)
    assert (length.steps, length.epochs, [length.steps_per_epoch(epoch) for epoch in range(2)]) == (6, 3, [2, 2])
    assert length.source == "3 epochs left x 10 batches / the accumulation of GradientAccumulationScheduler"


def test_a_fit_for_which_nothing_is_left_is_a_trial():
    config = parse_optim(COSINE)
    run = trainer(max_epochs=2)
    run.fit(Net(COSINE), loader(20))
    assert run_length(run, config).trial
    run.fit_loop.epoch_loop.max_steps, run.fit_loop.max_epochs = 20, 5
    assert run_length(run, config).trial
