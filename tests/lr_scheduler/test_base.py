"""Every policy is a torch LRScheduler: its closed form, state, resume, LR tensors."""

import copy
import io
import itertools
import pickle
import warnings

import pytest
import torch
from policies import ARGUMENTS, BASE_LRS, EXAMPLES, POLICIES, advance, current, make_optimizer
from torch.optim.lr_scheduler import LRScheduler, SequentialLR

from lightning_novograd import lr_scheduler
from lightning_novograd.lr_scheduler import CosineAnnealing, WarmupPolicy
from lightning_novograd.lr_scheduler.base import ClosedFormLR


def through_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_the_table_of_arguments_is_complete():
    assert set(ARGUMENTS) == set(lr_scheduler.__all__)


@pytest.mark.parametrize("name", EXAMPLES)
class TestEveryPolicy:
    def build(self, name, optimizer):
        return POLICIES[name](optimizer, **EXAMPLES[name])

    def test_class_equals_its_function(self, name):
        optimizer = make_optimizer()
        scheduler = self.build(name, optimizer)
        assert isinstance(scheduler, LRScheduler)
        seen = advance(optimizer, scheduler, 35)
        formula, arguments = type(scheduler).formula, scheduler.arguments
        assert seen == [[formula(step, lr, **arguments) for lr in BASE_LRS] for step in range(36)]
        assert scheduler.get_last_lr() == seen[-1]

    def test_lr_tensor_is_written_in_place(self, name):
        optimizer, plain = make_optimizer(as_tensor=True), make_optimizer()
        tensors = [group["lr"] for group in optimizer.param_groups]
        scheduler = self.build(name, optimizer)
        seen = advance(optimizer, scheduler, 35)
        assert seen == advance(plain, self.build(name, plain), 35)
        for tensor, group, last in zip(tensors, optimizer.param_groups, scheduler.get_last_lr(), strict=True):
            assert group["lr"] is tensor
            assert isinstance(last, torch.Tensor)
            assert last is not tensor
            assert last == tensor

    @pytest.mark.parametrize("as_tensor", [False, True], ids=["float", "tensor"])
    @pytest.mark.parametrize("step", [0, 1, 5, 6, 17, 30, 33])
    def test_resumed_run_equals_the_uninterrupted_one(self, name, step, as_tensor):
        optimizer = make_optimizer(as_tensor=as_tensor)
        scheduler = self.build(name, optimizer)
        advance(optimizer, scheduler, step)
        saved = through_file({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()})
        rest = advance(optimizer, scheduler, 5)

        resumed_optimizer = make_optimizer(as_tensor=as_tensor)
        resumed = self.build(name, resumed_optimizer)
        resumed_optimizer.load_state_dict(saved["optimizer"])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            resumed.load_state_dict(saved["scheduler"])
            assert resumed.get_last_lr() == rest[0]
            assert advance(resumed_optimizer, resumed, 5) == rest
        assert resumed.state_dict() == scheduler.state_dict()

    def test_state_is_plain_python(self, name):
        def plain(value):
            if isinstance(value, dict):
                return all(isinstance(k, str) and plain(v) for k, v in value.items())
            if isinstance(value, list):
                return all(map(plain, value))
            return type(value) in (int, float, str, bool, type(None))

        optimizer = make_optimizer(as_tensor=True)
        assert plain(self.build(name, optimizer).state_dict())

    def test_phases_cover_the_run_without_gap(self, name):
        phases = self.build(name, make_optimizer()).phases()
        assert phases[0].first_step == 0
        for before, after in itertools.pairwise(phases):
            assert before.last_step + 1 == after.first_step
        assert phases[-1].last_step in (EXAMPLES[name].get("max_steps", 30), None)

    @pytest.mark.filterwarnings("ignore:Seems like `optimizer.step")
    def test_copies_and_pickles(self, name):
        optimizer = make_optimizer()
        scheduler = self.build(name, optimizer)
        for clone in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
            clone.step()
            assert clone.last_epoch == 1
        assert scheduler.last_epoch == 0

    def test_construction_at_a_later_step(self, name):
        optimizer = make_optimizer()
        expected = advance(optimizer, self.build(name, optimizer), 12)[-1]
        resumed = make_optimizer()
        for group in resumed.param_groups:
            group["initial_lr"] = group["lr"]
        POLICIES[name](resumed, **EXAMPLES[name], last_epoch=11)
        assert current(resumed) == expected


def test_one_after_the_other_in_a_sequential_lr():
    def build():
        optimizer = make_optimizer((0.1,))
        first = lr_scheduler.WarmupPolicy(optimizer, warmup_steps=9)
        second = lr_scheduler.CosineAnnealing(optimizer, max_steps=20)
        return optimizer, SequentialLR(optimizer, [first, second], milestones=[10])

    optimizer, scheduler = build()
    expected = [WarmupPolicy.formula(s, 0.1, warmup_steps=9) for s in range(10)]
    expected += [CosineAnnealing.formula(s, 0.1, max_steps=20) for s in range(21)]
    assert [lr for (lr,) in advance(optimizer, scheduler, 30)] == expected

    for step in (4, 10, 15):
        optimizer, scheduler = build()
        advance(optimizer, scheduler, step)
        resumed_optimizer, resumed = build()
        resumed_optimizer.load_state_dict(optimizer.state_dict())
        resumed.load_state_dict(scheduler.state_dict())
        assert [lr for (lr,) in advance(resumed_optimizer, resumed, 30 - step)] == expected[step:]


def test_a_policy_is_a_function_and_a_constructor():
    class Halving(ClosedFormLR):
        formula = staticmethod(lambda step, base_lr, *, every: base_lr * 0.5 ** (step // every))

        def __init__(self, optimizer, *, every, last_epoch=-1):
            super().__init__(optimizer, last_epoch=last_epoch, every=every)

    optimizer = make_optimizer()
    assert advance(optimizer, Halving(optimizer, every=2), 2) == [[0.1, 0.02], [0.1, 0.02], [0.05, 0.01]]


def test_only_optimizers():
    with pytest.raises(TypeError, match="dict is not an Optimizer"):
        lr_scheduler.WarmupPolicy({})
