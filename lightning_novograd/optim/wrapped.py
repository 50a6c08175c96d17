"""Optimizers that hold others: what they hold, what they are called, and what they pass on."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from torch.optim import Optimizer

# Where LARC, Composite and ZeroRedundancyOptimizer keep theirs
_ATTRIBUTES = ("optimizer", "optimizers", "optim")


def wrapped_in(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizers that `optimizer` steps with; none, if it does its own arithmetic."""
    found: list[Optimizer] = []
    for attribute in _ATTRIBUTES:
        held = vars(optimizer).get(attribute, ())
        found += [one for one in (held if isinstance(held, list | tuple) else [held]) if isinstance(one, Optimizer)]
    return found


def all_in(optimizer: Optimizer) -> Iterator[Optimizer]:
    """`optimizer` and all that it steps with, from the outside to the inside."""
    yield optimizer
    for inner in wrapped_in(optimizer):
        yield from all_in(inner)


def full_name(optimizer: Optimizer) -> str:
    """The name of the class and of those inside: `"SGD"`, `"LARC(SGD)"`, `"Composite(NovoGrad, AdamW)"`."""
    inner = ", ".join(map(full_name, wrapped_in(optimizer)))
    return f"{type(optimizer).__name__}({inner})" if inner else type(optimizer).__name__


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether `step` cannot do without a closure, as where it evaluates the loss several times (LBFGS)."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


class TellsOfEvaluation:
    """For optimizers that hold others: `train` and `eval`, where one of those inside has them.

    Optimizers that keep averaged weights, such as Schedule-Free's, swap them in for evaluation and must be told when.
    Whoever does so looks whether an optimizer has the methods; one that holds none of these has none.
    """

    @property
    def train(self) -> Callable[[], None]:
        """Tells the optimizers inside that training goes on."""
        return self._telling("train")

    @property
    def eval(self) -> Callable[[], None]:
        """Tells the optimizers inside that an evaluation, or a checkpoint of the averaged weights, comes next."""
        return self._telling("eval")

    def _telling(self, name: str) -> Callable[[], None]:
        assert isinstance(self, Optimizer)
        methods: list[Callable[[], Any]] = [getattr(o, name) for o in wrapped_in(self) if hasattr(o, name)]
        if not methods:
            raise AttributeError(f"{full_name(self)!r} object has no attribute {name!r}")

        def tell() -> None:
            for method in methods:
                method()

        return tell
