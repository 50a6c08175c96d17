"""The grammar of phases: what it refuses, where phases begin and end, and what a policy adds to it."""

import copy

import pytest
from policies import make_optimizer

from lightning_novograd import lr_scheduler
from lightning_novograd.errors import ConfigError
from lightning_novograd.lr_scheduler.base import Phase, ScheduleError
from lightning_novograd.lr_scheduler.phases import PhasedLR, WarmupLR, number

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


class TestPoliciesOfOnesOwn:
    def test_a_policy_is_its_annealing(self):
        class QuarterCircle(WarmupLR):
            @staticmethod
            def annealing(step, base_lr, *, max_steps, min_lr, radius, **_):
                return max(base_lr * (1 - (step / max_steps / radius) ** 2) ** 0.5, min_lr)

            def __init__(self, optimizer, *, radius=1.0, **phases):
                self.arguments = {"radius": number("radius", radius, low=1.0)}
                super().__init__(optimizer, **phases)

        scheduler = QuarterCircle(make_optimizer(), max_steps=10, warmup_steps=2, min_lr=0.01)
        lrs = [scheduler.lr_at(step, 1.0) for step in (0, 1, 2, 6, 10, 11)]
        assert lrs == pytest.approx([1 / 3, 2 / 3, 1.0, 0.8, 0.01, 0.01])
        assert scheduler.arguments == {"max_steps": 10, "min_lr": 0.01, "radius": 1.0, "warmup_steps": 2}
        assert scheduler.phases() == [Phase("warmup", 0, 2), Phase("anneal", 3, 10)]
        with pytest.raises(ScheduleError, match=r"radius: 0\.5 is out of range"):
            QuarterCircle(make_optimizer(), max_steps=10, radius=0.5)

    def test_or_a_formula_for_the_whole_run(self):
        class QuarterCircle(PhasedLR):
            formula = staticmethod(
                lambda step, base_lr, *, max_steps, min_lr: max(
                    base_lr * (1 - (min(step, max_steps) / max_steps) ** 2) ** 0.5, min_lr
                )
            )

            def __init__(self, optimizer, *, max_steps, min_lr=0.0, last_epoch=-1):
                super().__init__(optimizer, last_epoch, max_steps=max_steps, min_lr=min_lr)

        scheduler = QuarterCircle(make_optimizer(), max_steps=10)
        assert [scheduler.lr_at(step, 1.0) for step in (0, 6, 8, 10, 12)] == pytest.approx([1.0, 0.8, 0.6, 0.0, 0.0])


@pytest.mark.parametrize("name", ["SquareAnnealing", "PolynomialHoldDecayAnnealing", "NoamAnnealing"])
def test_the_command_line_finds_the_arguments_that_are_handed_on(name):
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(getattr(lr_scheduler, name), "sched", skip={"optimizer"})
    defaults = parser.get_defaults().sched
    assert (defaults.warmup_steps, defaults.warmup_ratio, defaults.last_epoch) == (None, None, -1)
    assert "steps until the base LR is reached" in " ".join(parser.format_help().split())
