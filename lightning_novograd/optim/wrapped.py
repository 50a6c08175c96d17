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


class Wrapper(Optimizer):
    """Base of optimizers that step with others: hooks around what these save and load, and methods that they have.

    Optimizers that keep averaged weights, such as Schedule-Free's, swap them in for evaluation and must be told when;
    those that share their state among ranks must gather it before it is saved. Whoever does so looks whether an
    optimizer has the methods: a wrapper has them if an optimizer inside does.

    A subclass defines `_own_state_dict` and `_load_own`.
    """

    @property
    def train(self) -> Callable[[], None]:
        """Tells the optimizers inside that training goes on."""
        return self._passed_on("train")

    @property
    def eval(self) -> Callable[[], None]:
        """Tells the optimizers inside that an evaluation, or a checkpoint of the averaged weights, comes next."""
        return self._passed_on("eval")

    @property
    def consolidate_state_dict(self) -> Callable[..., None]:
        """Has a ZeroRedundancyOptimizer inside gather its state on rank `to` (0); all ranks must call it."""
        return self._passed_on("consolidate_state_dict")

    def _passed_on(self, name: str) -> Callable[..., None]:
        methods: list[Callable[..., Any]] = [getattr(o, name) for o in wrapped_in(self) if hasattr(o, name)]
        if not methods:
            raise AttributeError(f"{full_name(self)!r} object has no attribute {name!r}")

        def call_each(*args: Any, **kwargs: Any) -> None:
            for method in methods:
                method(*args, **kwargs)

        return call_each

    def state_dict(self) -> dict[str, Any]:
        """The state of the optimizers inside, in torch's format, between the hooks."""
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        state_dict = self._own_state_dict()
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            result = post_hook(self, state_dict)
            state_dict = state_dict if result is None else result
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load into the optimizers inside, between the hooks.

        Args:
            state_dict: of a wrapper like this one.

        Raises:
            ValueError: it does not fit.

        """
        state_dict = state_dict.copy()
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            result = pre_hook(self, state_dict)
            state_dict = state_dict if result is None else result
        self._load_own(state_dict)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def _own_state_dict(self) -> dict[str, Any]:
        raise NotImplementedError

    def _load_own(self, state_dict: dict[str, Any]) -> None:
        raise NotImplementedError


def add_to(optimizer: Optimizer, param_group: dict[str, Any]) -> None:
    """Add a param group; if the optimizer refuses it, its groups are what they were."""
    size = len(optimizer.param_groups)
    try:
        optimizer.add_param_group(param_group)
    except Exception:
        del optimizer.param_groups[size:]  # optimizers have been known to check what they have added already
        raise
