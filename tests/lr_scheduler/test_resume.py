"""Resuming with other settings, and param groups that were added."""

import copy
import warnings

import pytest
import torch
from policies import BASE_LRS, advance, current, make_optimizer

from lightning_novograd import lr_scheduler
from lightning_novograd.lr_scheduler.base import ScheduleError


class TestChangedSettings:
    """What a user changes before resuming holds from the resumed step on, and is said."""

    def saved_at(self, step, name="CosineAnnealing", base_lrs=BASE_LRS, **args):
        optimizer = make_optimizer(base_lrs)
        scheduler = getattr(lr_scheduler, name)(optimizer, **args)
        advance(optimizer, scheduler, step)
        return optimizer.state_dict(), scheduler.state_dict()

    def resumed(self, saved, name="CosineAnnealing", base_lrs=BASE_LRS, **args):
        optimizer = make_optimizer(base_lrs)
        scheduler = getattr(lr_scheduler, name)(optimizer, **args)
        optimizer.load_state_dict(saved[0])
        scheduler.load_state_dict(saved[1])
        return optimizer, scheduler

    def test_longer_run_continues_on_the_longer_schedule(self):
        saved = self.saved_at(20, max_steps=40)
        with pytest.warns(UserWarning, match=r"resumes at step 20 .*max_steps 40 -> 80.*lr 0.05, 0.01 -> 0.0853"):
            optimizer, scheduler = self.resumed(saved, max_steps=80)
        uninterrupted = make_optimizer()
        expected = advance(uninterrupted, lr_scheduler.CosineAnnealing(uninterrupted, max_steps=80), 60)[20:]
        assert advance(optimizer, scheduler, 40) == expected

    def test_ratios_follow_the_new_length(self):
        saved = self.saved_at(3, max_steps=40, warmup_ratio=0.25)
        with pytest.warns(UserWarning, match="max_steps 40 -> 80; warmup_steps 10 -> 20"):
            self.resumed(saved, max_steps=80, warmup_ratio=0.25)

    def test_new_lr_reaches_the_groups(self):
        saved = self.saved_at(20, max_steps=40)
        with pytest.warns(UserWarning, match=r"lr of param group 0 0.1 -> 0.2\. The new settings are used"):
            optimizer, scheduler = self.resumed(saved, base_lrs=(0.2, 0.02), max_steps=40)
        assert current(optimizer) == pytest.approx([0.1, 0.01])
        assert [group["initial_lr"] for group in optimizer.param_groups] == [0.2, 0.02]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.resumed((optimizer.state_dict(), scheduler.state_dict()), base_lrs=(0.2, 0.02), max_steps=40)

    def test_new_min_lr(self):
        saved = self.saved_at(39, max_steps=40)
        with pytest.warns(UserWarning, match=r"min_lr 0.0 -> 0.01"):
            optimizer, scheduler = self.resumed(saved, max_steps=40, min_lr=0.01)
        assert advance(optimizer, scheduler, 1)[-1] == pytest.approx([0.01, 0.01])

    def test_other_policy_continues_at_the_step(self):
        saved = self.saved_at(20, max_steps=40)
        with pytest.warns(UserWarning, match="policy CosineAnnealing -> WarmupAnnealing"):
            optimizer, _ = self.resumed(saved, name="WarmupAnnealing", max_steps=40)
        assert current(optimizer) == pytest.approx([0.05, 0.01])

    def test_state_of_a_torch_scheduler_gives_the_step(self):
        optimizer = make_optimizer()
        foreign = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        advance(optimizer, foreign, 20)
        with pytest.warns(UserWarning, match="policy another scheduler -> CosineAnnealing"):
            resumed, _ = self.resumed((optimizer.state_dict(), foreign.state_dict()), max_steps=40)
        assert current(resumed) == pytest.approx([0.05, 0.01])

    def test_state_without_a_step_is_refused(self):
        with pytest.raises(ScheduleError, match="last_epoch"):
            self.resumed((make_optimizer().state_dict(), {"epoch": 3}), max_steps=40)

    def test_lr_of_a_scheduler_that_loads_before_the_optimizer(self):
        optimizer_state, scheduler_state = self.saved_at(20, max_steps=40)
        optimizer = make_optimizer()
        scheduler = lr_scheduler.CosineAnnealing(optimizer, max_steps=40)
        scheduler.load_state_dict(scheduler_state)
        assert current(optimizer) == scheduler_state["_last_lr"]
        optimizer.load_state_dict(optimizer_state)
        assert current(optimizer) == scheduler_state["_last_lr"]

    def test_lr_that_someone_else_set_is_left_alone(self):
        optimizer_state, scheduler_state = self.saved_at(20, max_steps=40)
        optimizer_state["param_groups"][0]["lr"] = 0.033
        optimizer, _ = self.resumed((optimizer_state, scheduler_state), max_steps=40)
        assert current(optimizer)[0] == 0.033


class TestAddedGroups:
    def setup_method(self):
        self.optimizer = make_optimizer()
        self.scheduler = lr_scheduler.CosineAnnealing(self.optimizer, max_steps=40)
        advance(self.optimizer, self.scheduler, 10)
        self.added = {"params": [torch.nn.Parameter(torch.zeros(1))]}

    def test_follows_the_schedule_from_its_initial_lr(self):
        self.optimizer.add_param_group({**self.added, "initial_lr": 0.04})
        advance(self.optimizer, self.scheduler, 10)
        assert current(self.optimizer) == pytest.approx([0.05, 0.01, 0.02])

    def test_without_initial_lr_it_starts_from_its_lr_and_a_warning_says_so(self):
        """As Lightning's fine-tuning callbacks add them."""
        self.optimizer.add_param_group({**self.added, "lr": 0.04})
        with pytest.warns(UserWarning, match="param group 2 was added .* takes its lr, 0.04, as the LR to start from"):
            self.scheduler.step()
        advance(self.optimizer, self.scheduler, 9)
        assert current(self.optimizer) == pytest.approx([0.05, 0.01, 0.02])

    def test_survives_a_resume(self):
        self.optimizer.add_param_group({**self.added, "initial_lr": 0.04})
        advance(self.optimizer, self.scheduler, 5)
        resumed = make_optimizer()
        scheduler = lr_scheduler.CosineAnnealing(resumed, max_steps=40)
        resumed.add_param_group({**self.added})
        resumed.load_state_dict(self.optimizer.state_dict())
        scheduler.load_state_dict(self.scheduler.state_dict())
        assert advance(resumed, scheduler, 5) == advance(self.optimizer, self.scheduler, 5)


class TestState:
    """What is in the state, and that it is a copy."""

    def test_has_all_that_lightning_and_torch_read(self):
        optimizer = make_optimizer()
        scheduler = lr_scheduler.CosineAnnealing(optimizer, max_steps=40)
        advance(optimizer, scheduler, 3)
        state = scheduler.state_dict()
        assert state.keys() == {"last_epoch", "_step_count", "base_lrs", "_last_lr", "policy", "arguments"}
        assert (state["last_epoch"], state["_step_count"]) == (3, 4)
        assert state["base_lrs"] == list(BASE_LRS)

    def test_the_count_of_a_scheduler_that_was_built_at_a_later_step_is_its_own(self):
        """torch counts calls of `step`, and warns of an order by this count."""
        optimizer = make_optimizer()
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        scheduler = lr_scheduler.CosineAnnealing(optimizer, max_steps=40, last_epoch=19)
        assert (scheduler.last_epoch, scheduler._step_count) == (20, 1)
        resumed = lr_scheduler.CosineAnnealing(make_optimizer(), max_steps=40)
        resumed.load_state_dict(scheduler.state_dict())
        assert (resumed.last_epoch, resumed._step_count) == (20, 1)

    def test_does_not_change_with_the_scheduler_it_came_from_or_went_into(self):
        optimizer = make_optimizer()
        scheduler = lr_scheduler.CosineAnnealing(optimizer, max_steps=40)
        state = scheduler.state_dict()
        before = copy.deepcopy(state)
        other = make_optimizer()
        resumed = lr_scheduler.CosineAnnealing(other, max_steps=40)
        resumed.load_state_dict(state)
        for opt, schedule in ((optimizer, scheduler), (other, resumed)):
            opt.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "initial_lr": 0.04})
            advance(opt, schedule, 3)
            schedule.arguments["max_steps"] = 7
        assert state == before


def test_the_initial_lr_is_the_base_when_the_run_is_past_its_decay():
    """A scheduler that is built at a later step finds a decayed LR in the group, below its `min_lr`."""
    optimizer = make_optimizer((0.1,))
    optimizer.param_groups[0].update(lr=0.001, initial_lr=0.1)
    scheduler = lr_scheduler.CosineAnnealing(optimizer, max_steps=40, min_lr=0.01, last_epoch=19)
    assert scheduler.base_lrs == [0.1]
    assert current(optimizer) == [lr_scheduler.CosineAnnealing.formula(20, 0.1, max_steps=40, min_lr=0.01)]


def test_a_group_that_the_saved_run_had_added_has_its_base_from_there():
    """Also where the scheduler is loaded before the optimizer, whose new group knows no `initial_lr` yet."""
    saved = make_optimizer()
    trained = lr_scheduler.CosineAnnealing(saved, max_steps=40)
    saved.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "initial_lr": 0.04})
    advance(saved, trained, 10)
    resumed = make_optimizer()
    scheduler = lr_scheduler.CosineAnnealing(resumed, max_steps=40)
    resumed.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.load_state_dict(trained.state_dict())
    assert scheduler.base_lrs == [*BASE_LRS, 0.04]
    assert resumed.param_groups[2]["initial_lr"] == 0.04


@pytest.mark.parametrize(("lr", "said"), [(0.1005, True), (0.0995, True), (0.1 * (1 + 1e-7), False)])
def test_a_small_change_of_the_lr_is_said_and_a_rounding_is_not(lr, said):
    saved = make_optimizer((0.1,))
    state = lr_scheduler.CosineAnnealing(saved, max_steps=40).state_dict()
    scheduler = lr_scheduler.CosineAnnealing(make_optimizer((lr,)), max_steps=40)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scheduler.load_state_dict(state)
    assert [f"lr of param group 0 0.1 -> {lr}" in str(w.message) for w in caught] == [True] * said


@pytest.mark.parametrize("last", ["PolyDecay", "CosineAnnealing"])
def test_a_member_that_has_not_begun_sets_no_lr(last):
    """A SequentialLR has its later members at step -1, where no formula has a value."""

    def run():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        members = [
            torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
            getattr(lr_scheduler, last)(optimizer, max_steps=6),
        ]
        return optimizer, torch.optim.lr_scheduler.SequentialLR(optimizer, members, milestones=[3])

    def steps(optimizer, scheduler, count):
        lrs = []
        for _ in range(count):
            lrs.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            scheduler.step()
        return lrs

    expected = steps(*run(), 8)
    for at in range(8):
        optimizer, scheduler = run()
        steps(optimizer, scheduler, at)
        resumed, again = run()
        resumed.load_state_dict(optimizer.state_dict())
        again.load_state_dict(scheduler.state_dict())
        assert steps(resumed, again, 8 - at) == expected[at:], at
