"""Every argument of every policy is checked, and the error has its name."""

import inspect

import pytest
import torch
from policies import EXAMPLES, POLICIES, make_optimizer

from lightning_novograd import lr_scheduler
from lightning_novograd.config.arguments import arguments_of, entry_arguments
from lightning_novograd.lr_scheduler.base import ScheduleError
from lightning_novograd.registry import available_schedulers, get_scheduler

ARGUMENTS = [
    (name, argument)
    for name in POLICIES
    for argument in entry_arguments(get_scheduler(name))
    if argument != "last_epoch"
]


@pytest.mark.parametrize("bad", [-1, float("nan"), 1e39, 1e300, "x", [1]], ids=str)
@pytest.mark.parametrize(("name", "argument"), ARGUMENTS, ids=lambda value: value)
def test_a_bad_value_is_refused_by_the_arguments_name(name, argument, bad):
    phase = argument.removesuffix("_steps").removesuffix("_ratio")
    example = {
        key: value for key, value in EXAMPLES[name].items() if key not in (f"{phase}_steps", f"{phase}_ratio", argument)
    }
    if isinstance(EXAMPLES[name].get(argument), list):
        bad = [bad, *EXAMPLES[name][argument][1:]]
    with pytest.raises(ScheduleError) as error:
        POLICIES[name](make_optimizer(), **example, **{argument: bad})
    assert error.value.path == argument


def test_steps_per_epoch_of_piecewise_constant():
    for bad in (0, 1.5, "x"):
        with pytest.raises(ScheduleError) as error:
            lr_scheduler.PiecewiseConstant(
                make_optimizer(), boundaries=[1, 2], decay_rates=[0.1, 0.2], steps_per_epoch=bad
            )
        assert error.value.path == "steps_per_epoch"


@pytest.mark.parametrize("constant_steps", [0, 1, 5])
def test_a_constant_phase_at_the_lr_where_it_began_is_refused(constant_steps):
    arguments = {"max_steps": 30, "min_lr": 0.1, "constant_steps": constant_steps}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    if constant_steps == 0:
        assert lr_scheduler.CosineAnnealing(optimizer, **arguments).lr_at(7, 0.1) == 0.1
        return
    with pytest.raises(ScheduleError, match=r"0\.1 is the learning rate of param group 0; must be below it") as error:
        lr_scheduler.CosineAnnealing(optimizer, **arguments)
    assert error.value.path == "min_lr"


FORMULAS = [
    (cls, getattr(cls, name))
    for cls in (get_scheduler(name).cls for name in available_schedulers())
    for name in ("formula", "annealing")
    if hasattr(cls, name)
]


@pytest.mark.parametrize(("cls", "formula"), FORMULAS, ids=lambda value: getattr(value, "__qualname__", ""))
def test_a_formula_has_the_defaults_of_its_class(cls, formula):
    """So that who calls the formula by itself gets the curve of the block that says as little."""
    arguments = arguments_of(cls, ("optimizer",))
    for name, parameter in inspect.signature(formula).parameters.items():
        if parameter.default is not parameter.empty and name in arguments and arguments[name].default is not None:
            assert (name, parameter.default) == (name, arguments[name].default)
