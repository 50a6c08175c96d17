"""The policies are torch LRSchedulers: state, resume, LR tensors, param groups, errors."""

import copy
import io
import itertools
import pickle
import warnings

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler, SequentialLR

from lightning_novograd import lr_scheduler
from lightning_novograd.errors import ConfigError
from lightning_novograd.lr_scheduler import formulas
from lightning_novograd.lr_scheduler.base import ClosedFormLR, Phase, ScheduleError

ARGUMENTS = {
    "CosineAnnealing": {"max_steps": 30, "warmup_ratio": 0.2, "constant_steps": 4, "min_lr": 1e-3},
    "CosineDecay": {"max_steps": 30, "warmup_steps": 5, "min_lr_ratio": 0.1},
    "ExpDecay": {"decay_steps": 7, "decay_rate": 0.5, "use_staircase_decay": False},
    "InvPolyDecay": {"max_steps": 30, "min_lr": 1e-3},
    "InverseSquareRootAnnealing": {"max_steps": 30, "warmup_steps": 5},
    "NoamAnnealing": {"d_model": 16, "warmup_steps": 5},
    "NoamHoldAnnealing": {"max_steps": 30, "warmup_steps": 5, "hold_steps": 4},
    "PiecewiseConstant": {"boundaries": [5, 20], "decay_rates": [0.1, 0.01]},
    "PolyDecay": {"max_steps": 30, "power": 2.0, "begin_decay_at": 3},
    "PolynomialDecayAnnealing": {"max_steps": 30, "warmup_steps": 5, "power": 2.0},
    "PolynomialHoldDecayAnnealing": {"max_steps": 30, "warmup_steps": 5, "hold_steps": 4, "cycle": True},
    "SquareAnnealing": {"max_steps": 30, "warmup_steps": 5},
    "SquareRootAnnealing": {"max_steps": 30, "warmup_steps": 5},
    "T5InverseSquareRootAnnealing": {"max_steps": 30, "constant_steps": 5},
    "TransformerPolicy": {"d_model": 16, "warmup_steps": 5, "max_lr": 0.01},
    "WarmupAnnealing": {"max_steps": 30, "warmup_steps": 5},
    "WarmupHoldAnnealExponential": {"max_steps": 30, "gamma": 0.9, "num_decays": 6, "warmup_steps": 5, "hold_steps": 4},
    "WarmupHoldAnnealLinear": {"max_steps": 30, "warmup_steps": 5, "hold_ratio": 0.2},
    "WarmupHoldAnnealOneMinusSquareRoot": {"max_steps": 30, "warmup_steps": 5, "hold_steps": 4},
    "WarmupHoldPolicy": {"max_steps": 30, "warmup_steps": 5, "hold_steps": 4},
    "WarmupPolicy": {"max_steps": 30, "warmup_steps": 5},
}
BASE_LRS = (0.1, 0.02)


def make_optimizer(base_lrs=BASE_LRS, as_tensor=False):
    lrs = [torch.tensor(lr, dtype=torch.float64) for lr in base_lrs] if as_tensor else base_lrs
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs], lr=0.1)


def advance(optimizer, scheduler, steps):
    """The LRs of each step, those before the first included."""
    seen = [current(optimizer)]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        seen.append(current(optimizer))
    return seen


def current(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def through_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_the_table_above_is_complete():
    assert set(ARGUMENTS) == set(lr_scheduler.__all__)


@pytest.mark.parametrize("name", ARGUMENTS)
class TestEveryPolicy:
    def build(self, name, optimizer):
        return getattr(lr_scheduler, name)(optimizer, **ARGUMENTS[name])

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
        assert phases[-1].last_step in (30, None)

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
        getattr(lr_scheduler, name)(resumed, **ARGUMENTS[name], last_epoch=11)
        assert current(resumed) == expected


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


def test_one_after_the_other_in_a_sequential_lr():
    def build():
        optimizer = make_optimizer((0.1,))
        first = lr_scheduler.WarmupPolicy(optimizer, warmup_steps=9)
        second = lr_scheduler.CosineAnnealing(optimizer, max_steps=20)
        return optimizer, SequentialLR(optimizer, [first, second], milestones=[10])

    optimizer, scheduler = build()
    expected = [formulas.warmup(s, 0.1, warmup_steps=9) for s in range(10)]
    expected += [formulas.cosine(s, 0.1, max_steps=20) for s in range(21)]
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


IMPOSSIBLE = [
    ("CosineAnnealing", {"max_steps": None}, "max_steps", "needs the number of steps"),
    ("CosineAnnealing", {"max_steps": 0}, "max_steps", "at least 1"),
    ("CosineAnnealing", {"max_steps": "50"}, "max_steps", "'50'"),
    ("CosineAnnealing", {"max_steps": 50.5}, "max_steps", "50.5 is not a whole number"),
    ("CosineAnnealing", {"max_steps": True}, "max_steps", "True"),
    ("CosineAnnealing", {"max_steps": float("inf")}, "max_steps", "inf is not a finite number"),
    ("CosineAnnealing", {"max_steps": 50, "warmup_steps": -1}, "warmup_steps", "-1 is out of range"),
    (
        "CosineAnnealing",
        {"max_steps": 50, "warmup_steps": 51},
        "warmup_steps",
        "51 warmup steps do not fit max_steps=50",
    ),
    ("CosineAnnealing", {"max_steps": 50, "warmup_ratio": 1.5}, "warmup_ratio", "1.5 is out of range; must be in 0..1"),
    ("CosineAnnealing", {"max_steps": 50, "warmup_ratio": 0.1, "warmup_steps": 5}, "warmup_ratio", "both given"),
    ("CosineAnnealing", {"max_steps": 50, "constant_steps": 5, "constant_ratio": 0.1}, "constant_ratio", "both given"),
    ("CosineAnnealing", {"max_steps": 50, "constant_steps": 50}, "constant_steps", "must end before it"),
    ("CosineAnnealing", {"max_steps": 50, "constant_ratio": 1.0}, "constant_ratio", "must end before it"),
    (
        "CosineAnnealing",
        {"max_steps": 50, "warmup_steps": 20, "constant_steps": 31},
        "constant_steps",
        "after 20 steps",
    ),
    ("CosineAnnealing", {"max_steps": 50, "min_lr": 0.05}, "min_lr", "param group 1, 0.02"),
    ("CosineAnnealing", {"max_steps": 50, "min_lr": -0.1}, "min_lr", "-0.1 is out of range"),
    ("CosineAnnealing", {"max_steps": 50, "min_lr": float("nan")}, "min_lr", "nan is not a finite number"),
    (
        "CosineAnnealing",
        {"max_steps": 50, "constant_steps": 5, "min_lr": 0.02},
        "min_lr",
        "param group 1; must be below",
    ),
    ("WarmupPolicy", {"warmup_ratio": 0.1}, "warmup_ratio", "share of max_steps, which is not given"),
    ("WarmupHoldPolicy", {"warmup_steps": 10}, "max_steps", "needs the number of steps"),
    (
        "WarmupHoldPolicy",
        {"max_steps": 50, "warmup_steps": 10, "hold_steps": 40},
        "hold_steps",
        "after 10 steps of warmup",
    ),
    ("WarmupHoldAnnealLinear", {"max_steps": 50, "hold_ratio": 1.0}, "hold_ratio", "50 hold steps do not fit"),
    ("WarmupHoldAnnealLinear", {"max_steps": 50, "hold_ratio": 0.1, "hold_steps": 1}, "hold_ratio", "both given"),
    ("NoamHoldAnnealing", {"max_steps": 50}, "warmup_steps", "relative to its length"),
    ("NoamHoldAnnealing", {"max_steps": 50, "warmup_ratio": 0.01}, "warmup_ratio", "relative to its length"),
    ("NoamHoldAnnealing", {"max_steps": 50, "warmup_steps": 5, "decay_rate": -1}, "decay_rate", "at least 0"),
    ("NoamAnnealing", {"d_model": 0}, "d_model", "at least 1"),
    ("T5InverseSquareRootAnnealing", {"max_steps": 50, "constant_steps": 0}, "constant_steps", "at least 1"),
    (
        "T5InverseSquareRootAnnealing",
        {"max_steps": 50, "constant_steps": 51},
        "constant_steps",
        "more than max_steps=50",
    ),
    ("PolynomialDecayAnnealing", {"max_steps": 50, "power": -1.0}, "power", "at least 0"),
    ("PolynomialDecayAnnealing", {"max_steps": 50, "cycle": "yes"}, "cycle", "'yes' is not true or false"),
]


@pytest.mark.parametrize(("name", "args", "path", "message"), IMPOSSIBLE)
def test_impossible_schedules_are_refused_when_built(name, args, path, message):
    optimizer = make_optimizer()
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ConfigError) as error:
        getattr(lr_scheduler, name)(optimizer, **args)
    assert error.value.path == path
    assert message in error.value.problem
    assert optimizer.state_dict() == before


def test_whole_numbers_may_be_written_as_floats():
    scheduler = lr_scheduler.CosineAnnealing(make_optimizer(), max_steps=1e3, warmup_steps=10.0)
    assert scheduler.arguments["max_steps"] == 1000
    assert type(scheduler.arguments["max_steps"]) is int


def test_only_optimizers():
    with pytest.raises(TypeError, match="dict is not an Optimizer"):
        lr_scheduler.WarmupPolicy({})


@pytest.mark.parametrize(
    ("name", "args", "phases"),
    [
        ("WarmupPolicy", {}, [("constant", 0, None)]),
        ("WarmupPolicy", {"warmup_steps": 50, "max_steps": 50}, [("warmup", 0, 50)]),
        (
            "WarmupHoldAnnealLinear",
            {"max_steps": 50, "warmup_steps": 10, "hold_steps": 15},
            [("warmup", 0, 10), ("hold", 11, 24), ("anneal", 25, 50)],
        ),
        ("WarmupHoldAnnealLinear", {"max_steps": 50, "hold_steps": 15}, [("hold", 0, 14), ("anneal", 15, 50)]),
        (
            "CosineAnnealing",
            {"max_steps": 50, "warmup_steps": 10, "constant_steps": 5},
            [("warmup", 0, 10), ("anneal", 11, 45), ("constant", 46, 50)],
        ),
        (
            "CosineAnnealing",
            {"max_steps": 50, "warmup_steps": 25, "constant_steps": 25},
            [("warmup", 0, 25), ("constant", 26, 50)],
        ),
        (
            "T5InverseSquareRootAnnealing",
            {"max_steps": 50, "constant_steps": 9},
            [("constant", 0, 9), ("anneal", 10, 50)],
        ),
        ("NoamAnnealing", {"d_model": 8, "warmup_steps": 4}, [("warmup", 0, 4), ("anneal", 5, None)]),
    ],
)
def test_phases(name, args, phases):
    assert getattr(lr_scheduler, name)(make_optimizer(), **args).phases() == [Phase(*phase) for phase in phases]
