"""At which step a schedule goes on that is not the checkpoint's, and how small a difference is said."""

import pytest
import torch
from training.test_resume import SCHEDULES, per_step, resumed, sgd

from lightning_novograd.config import build_optimizers, parse_optim
from lightning_novograd.training.checkpoint.resume import ResumeCheck

__all__ = ["resumed"]  # a fixture
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*", "ignore:.*(dirpath has changed|callbacks used to create).*"
)
DECAY = {"decay_steps": 2, "decay_rate": 0.5, "use_staircase_decay": True}


def place_of(after, states, step):
    """The state that the scheduler of block `after` will be given, where the checkpoint has `states`."""
    saved, again = (build_optimizers(sgd(), torch.nn.Linear(2, 1))["optimizer"] for _ in range(2))
    scheduler = torch.optim.lr_scheduler.StepLR(again, step_size=5)
    built = {"optimizer": again, "lr_scheduler": {"scheduler": scheduler}}
    ResumeCheck(parse_optim(sgd(sched=after)), built, lambda: states, lambda: None, lambda: step)
    with pytest.warns(UserWarning, match=f"StepLR instead of another scheduler, from step {step} and lr 0.1"):
        again.load_state_dict(saved.state_dict())
    return states[0]


def test_a_scheduler_of_torchs_counts_its_steps_from_there():
    other = torch.optim.lr_scheduler.ExponentialLR(torch.optim.SGD([torch.zeros(1)], lr=0.1), 0.5)
    state = place_of(SCHEDULES["StepLR"], [other.state_dict()], step=7)
    assert (state["last_epoch"], state["_step_count"], state["_last_lr"]) == (7, 8, [0.1])
    assert (state["step_size"], state["gamma"]) == (5, 0.1)


@pytest.mark.parametrize(
    ("sched", "saved_at", "step"),
    [
        pytest.param(per_step("WarmupAnnealing", max_steps=30), 7, 7, id="every step"),
        pytest.param(per_step("ExpDecay", **DECAY, frequency=2), 7, 3, id="every other step"),
        pytest.param({"name": "WarmupAnnealing", "interval": "epoch"}, 3, 0, id="first epoch"),
        pytest.param({"name": "WarmupAnnealing", "interval": "epoch"}, 4, 1, id="end of the first epoch"),
        pytest.param({"name": "WarmupAnnealing", "interval": "epoch"}, 5, 1, id="second epoch"),
        pytest.param({"name": "WarmupAnnealing", "interval": "epoch"}, 8, 2, id="end of the second epoch"),
        pytest.param({"name": "ExpDecay", **DECAY, "interval": "epoch", "frequency": 2}, 8, 1, id="every other epoch"),
    ],
)
def test_a_new_schedule_of_ours_goes_on_after_so_many_of_its_steps(sched, saved_at, step, resumed):
    _, (said,) = resumed(sgd(), sgd(sched=sched), saved_at=saved_at)
    assert f" resumes at step {step} with other settings" in said


@pytest.mark.parametrize(("lr", "said"), [(0.1005, True), (0.0995, True), (0.1 * (1 + 1e-7), False)])
def test_a_small_difference_of_the_lr_is_said_and_a_rounding_is_not(lr, said, recwarn):
    saved, again = (build_optimizers(sgd(value), torch.nn.Linear(2, 1))["optimizer"] for value in (0.1, lr))
    ResumeCheck(parse_optim(sgd(lr)), {"optimizer": again}, lambda: None, lambda: None, lambda: 0)
    again.load_state_dict(saved.state_dict())
    assert [f"lr 0.1 (config: {lr:.6g})" in str(w.message) for w in recwarn.list] == [True] * said


@pytest.mark.parametrize(("second", "said"), [("WarmupAnnealing", False), ("StepLR", True)])
def test_initial_lrs_are_the_checkpoints_only_where_a_member_is_torchs(second, said, recwarn):
    """Schedules of ours go on from the config's LR, inside of a SequentialLR too, and say so when they load."""
    arguments = {"WarmupAnnealing": {"max_steps": 9}, "StepLR": {"step_size": 3}}
    members = [{"name": "cosine", "max_steps": 9}, {"name": second, **arguments[second]}]
    sched = per_step("SequentialLR", milestones=[3], schedulers=members)
    before, after = (build_optimizers(sgd(lr, sched), torch.nn.Linear(2, 1)) for lr in (0.1, 0.2))
    states = [before["lr_scheduler"]["scheduler"].state_dict()]
    ResumeCheck(parse_optim(sgd(0.2, sched)), after, lambda: states, lambda: None, lambda: 0)
    after["optimizer"].load_state_dict(before["optimizer"].state_dict())
    assert any("initial_lr 0.1 (config: 0.2)" in str(w.message) for w in recwarn.list) == said
