"""Checking plain values against annotations."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler

from lightning_novograd.config.arguments import Argument, arguments_of, expected
from lightning_novograd.errors import ConfigError

NUMBER = float | torch.Tensor


@pytest.mark.parametrize(
    ("hint", "value", "converted"),
    [
        pytest.param(float, 1, 1.0, id="integers are numbers"),
        pytest.param(NUMBER, 0.5, 0.5, id="tensors are not for configs"),
        pytest.param(int, 1e5, 100_000, id="1e5 is an integer"),
        pytest.param(int | float, 2, 2, id="int before float"),
        pytest.param(bool | None, None, None, id="null"),
        pytest.param(bool | None, False, False, id="false"),
        pytest.param(tuple[NUMBER, NUMBER], [1, 0.5], (1.0, 0.5), id="pair"),
        pytest.param(tuple[float | None, float], [None, 1], (None, 1.0), id="pair with null"),
        pytest.param(tuple[int, ...], [1, 2, 3], (1, 2, 3), id="tuple of any length"),
        pytest.param(Iterable[int], [1, 2.0], [1, 2], id="iterable"),
        pytest.param(list[float] | float, [1], [1.0], id="list or number, list"),
        pytest.param(list[float] | float, 3, 3.0, id="list or number, number"),
        pytest.param(Literal["min", "max"], "max", "max", id="literal"),
        pytest.param(Any, {"a": 1}, {"a": 1}, id="anything"),
    ],
)
def test_values_that_fit(hint, value, converted):
    result = Argument("x", hint).convert(value, "path")
    assert result == converted
    assert type(result) is type(converted)


@pytest.mark.parametrize(
    ("hint", "value", "problem"),
    [
        pytest.param(float, True, "expected a number, got True", id="bool for a number"),
        pytest.param(int, True, "expected an integer, got True", id="bool for an integer"),
        pytest.param(int, 1.5, "expected an integer, got 1.5", id="fraction"),
        pytest.param(bool, 1, "expected true or false, got 1", id="number for a bool"),
        pytest.param(float, None, "expected a number, got null", id="null"),
        pytest.param(float, float("nan"), "expected a number, got nan", id="nan"),
        pytest.param(float, "1e-3", "(YAML reads 1e-3 as text, 1.0e-3 as a number;", id="YAML's 1e-3"),
        pytest.param(float, "0.1", "for a number write ${oc.decode:${oc.env:NAME}}", id="environment variable"),
        pytest.param(int, 1e300, "expected an integer, got 1e+300", id="too large"),
        pytest.param(float, "fast", "expected a number, got the text 'fast'", id="text"),
        pytest.param(tuple[float, float], [1], "expected a list of 2 numbers, got a list [1]", id="too few"),
        pytest.param(tuple[float, float], 0.9, "expected a list of 2 numbers, got 0.9", id="scalar for a pair"),
        pytest.param(
            list[float] | float, {"a": 1}, "expected a list of numbers or a number, got a mapping", id="mapping"
        ),
        pytest.param(Literal["min", "max"], "mean", "expected 'min' or 'max', got the text 'mean'", id="literal"),
        pytest.param(Callable[[int], float], "f", "takes a Python object", id="function"),
        pytest.param(Callable | None, "f", "expected null, got the text 'f'", id="optional function"),
    ],
)
def test_values_that_do_not_fit(hint, value, problem):
    with pytest.raises(ConfigError) as caught:
        Argument("x", hint).convert(value, "the.path")
    assert caught.value.path == "the.path"
    assert problem in caught.value.problem


class Base:
    def __init__(self, params, lr: float, *, momentum=0.9, steps=3, pair=(1, 0.5), anything=None):
        """Unannotated arguments are judged by their defaults."""


class Child(Base):
    """A child.

    Args:
        lr (float | Tensor, optional): learning rate. More about it.
        extra: some :math:`\\epsilon \\ge 0`
            on two lines (default: 1).

    """

    def __init__(self, params, extra: int = 1, **kwargs):
        super().__init__(params, **kwargs)


def test_kwargs_stand_for_the_base_class():
    arguments = arguments_of(Child, skip=("params",))
    assert list(arguments) == ["extra", "lr", "momentum", "steps", "pair", "anything"]
    assert [a.name for a in arguments.values() if a.required] == ["lr"]


def test_help_is_the_first_sentence_without_markup():
    arguments = arguments_of(Child, skip=("params",))
    assert (arguments["lr"].help, arguments["extra"].help) == ("learning rate", "some ε ≥ 0 on two lines")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("momentum", "a number"),
        ("steps", "an integer or a number"),
        ("pair", "a list (integer or a number, number)"),
        ("anything", "a value"),
    ],
)
def test_types_are_inferred_from_defaults(name, words):
    assert expected(arguments_of(Child, skip=("params",))[name].hint) == words


def test_lists_of_lists_are_said_in_english():
    hint = int | list[list[int]]
    assert expected(hint) == "an integer or a list of lists of integers"


class OfOtherTypes:
    def __init__(
        self,
        params: "OnlyForTypeCheckers",  # noqa: F821
        rate: "OnlyForTypeCheckers" = 0.1,  # noqa: F821
        start: "torch.NoSuchType | None" = None,
        steps: "int | None" = None,
        broken: "not an expression" = True,  # noqa: F722
    ):
        """As under `from __future__ import annotations`, with names that are imported `if TYPE_CHECKING`."""


def test_an_annotation_that_cannot_be_resolved_counts_as_none():
    arguments = arguments_of(OfOtherTypes, skip=("params",))
    assert {name: expected(argument.hint) for name, argument in arguments.items()} == {
        "rate": "a number",
        "start": "a value",
        "steps": "an integer or null",
        "broken": "true or false",
    }


@pytest.mark.parametrize(
    ("hint", "yes"),
    [(float | list[float], True), (list[float] | float, True), (list[float], False), (float | None, False)],
)
def test_lists_of_a_value_per_group_are_known(hint, yes):
    assert Argument("max_lr", hint).per_group == yes


@pytest.mark.parametrize(
    ("hint", "yes"), [(list[LRScheduler], True), (Sequence[LRScheduler], True), (list[int], False)]
)
def test_lists_of_schedulers_are_known(hint, yes):
    assert Argument("schedulers", hint).takes_schedulers == yes
