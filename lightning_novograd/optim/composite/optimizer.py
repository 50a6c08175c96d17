"""Composite: several optimizers, each with parameters of its own, as one.

The class is the outside; `groups`, `state` and `state_dict` are the views of what its parts hold.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_novograd.optim.composite.groups import ParamGroup, ParamGroups, check_disjoint, labels_of
from lightning_novograd.optim.composite.state import State
from lightning_novograd.optim.composite.state_dict import joined, split
from lightning_novograd.optim.parameters import listed_params
from lightning_novograd.optim.wrapped import Wrapper, add_to, all_in, full_name, needs_closure

# What a GradScaler sets on an optimizer for the time of a step
_SCALER_ATTRIBUTES = ("grad_scale", "found_inf")
_ABSENT = object()


class Composite(Wrapper):
    r"""Several optimizers, each with parameters of its own, as one.

    With the parameters in disjoint sets :math:`w_1, \dots, w_n`, one for each part, a step is every part's step:

    .. math::
        w_i \leftarrow \operatorname{step}_i(w_i, g_i), \quad i = 1, \dots, n

    Args:
        optimizers: the parts, at least one. Of a Composite among them the parts are taken, not its hooks.

    `param_groups` holds the parts' own param groups, with the part's name under `optimizer`: first in the parts' order,
    then those added since, as they came. Groups that are added, set or deleted here are so in the parts. `state` shows
    the parts' states; what is written to it is kept by the part that has the parameter. `defaults` are the options that
    all parts have, with the first part's values: a schedule that cycles `momentum` or `betas` finds them if all groups
    have them. The attribute `optimizers` is the tuple of parts. Parts may be LARCs, and a LARC may be around the whole.

    A part's name is that of its class, `"AdamW"` or `"LARC(SGD)"`, with its position where several have the same:
    `"SGD#0"`, `"SGD#2"`. It is saved with each param group. A state dict is in torch's format, with indices over all
    groups; the parts save and load their shares of it. What is under a LARC loads also if it was saved without.

    A GradScaler leaves unscaling to the step (`fused=True`) only if all parts support it; else it unscales all
    gradients and skips the whole step itself. Either way all parts step, or none. Hooks run around the whole step, and
    those of the parts around theirs. The methods `train` and `eval` (of Schedule-Free) and `consolidate_state_dict` (of
    ZeroRedundancyOptimizer) are there if a part has them, and are passed on.

    Raises:
        TypeError: a part is no torch Optimizer or evaluates its closure several times (LBFGS).
        ValueError: no parts, a parameter that two of them have, or a part that holds a Composite itself.

    Example:
        >>> import torch
        >>> from lightning_novograd.optim import NovoGrad
        >>> model = torch.nn.Sequential(torch.nn.Embedding(8, 4), torch.nn.Linear(4, 2))
        >>> optimizer = Composite(
        ...     [NovoGrad(model[1].parameters(), lr=0.01), torch.optim.AdamW(model[0].parameters(), lr=0.001)]
        ... )
        >>> model(torch.tensor([1, 2])).square().mean().backward()
        >>> optimizer.step()
        >>> [(group["optimizer"], group["lr"]) for group in optimizer.param_groups]
        [('NovoGrad', 0.01), ('AdamW', 0.001)]

    Ours, to be driven as one optimizer is by Lightning, a GradScaler and LR schedulers. Several optimizers behind one
    `step` are also torchtitan's `OptimizersContainer`, https://github.com/pytorch/torchtitan, and mmengine's
    `OptimWrapperDict`, https://github.com/open-mmlab/mmengine.

    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        parts = check_parts(optimizers)
        owners = [index for index, part in enumerate(parts) for _ in part.param_groups]
        check_disjoint([group for part in parts for group in part.param_groups], owners, labels_of(parts))
        defaults = {
            option: value
            for option, value in parts[0].defaults.items()
            if all(option in part.defaults for part in parts)
        }
        # As copies and unpickled ones begin; the base's __init__ would make new param_groups and state.
        self.__setstate__({"optimizers": parts, "owners": owners, "defaults": defaults})

    # The parts.
    optimizers: tuple[Optimizer, ...]

    @property
    def param_groups(self) -> list[ParamGroup]:
        """All parts' param groups; by the next step or look at it, what is changed in the list is so in the parts'."""
        return self._groups.synced()

    @param_groups.setter
    def param_groups(self, param_groups: list[ParamGroup]) -> None:
        self._groups.assign(param_groups)

    @property
    def state(self) -> Any:
        """All parts' states; the mapping writes through to the parts'."""
        return self._state

    @state.setter
    def state(self, state: Mapping[Any, Any]) -> None:
        self._state.assign(state)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a GradScaler leaves unscaling and skipping to `step`."""
        return self._unscales and all(getattr(part, "_step_supports_amp_scaling", False) for part in self.optimizers)

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, supports: bool) -> None:
        self._unscales = supports

    def __getstate__(self) -> dict[str, Any]:
        self._groups.synced()
        return {
            "optimizers": self.optimizers,
            "owners": list(self._groups.owners),
            "defaults": self.defaults,
            "unscales": self._unscales,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._groups = ParamGroups(state["optimizers"], state["owners"])
        self._state = State(self._groups)
        self._unscales = state.get("unscales", True)
        super().__setstate__({"optimizers": state["optimizers"], "defaults": state["defaults"]})

    def __repr__(self) -> str:
        return full_name(self) + super().__repr__().removeprefix(type(self).__name__)

    def add_param_group(self, param_group: ParamGroup) -> None:
        """Add a param group to one of the parts; it comes last in `param_groups`.

        Args:
            param_group: `params` and options, those left out take the part's defaults. The part is the one that is
                named under `optimizer`, by its index, by its name or by its class if no other part has it; without
                that key it is the first.

        Raises:
            ValueError: no such part, a parameter that another part has, or what the part refuses.

        """
        groups, owner = self._groups, 0
        present = groups.synced()
        if isinstance(param_group, dict):
            owner = groups.owner_of(param_group)
            added = {**param_group, "params": listed_params(param_group)}
            check_disjoint([*present, added], [*groups.owners, owner], groups.labels)
        add_to(self.optimizers[owner], param_group)
        groups.synced()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parts.

        Args:
            set_to_none: to None instead of to zero.

        """
        self._groups.synced()
        with torch.autograd.profiler.record_function(self._zero_grad_profile_name):
            for part in self.optimizers:
                part.zero_grad(set_to_none=set_to_none)

    def _own_state_dict(self) -> dict[str, Any]:
        """The parts' state dicts as one; its param groups name their parts."""
        self._groups.synced()
        return joined([part.state_dict() for part in self.optimizers], self._groups)

    def _load_own(self, state_dict: dict[str, Any]) -> None:
        """Load each part's share into it; if a part refuses its own, all keep what they had.

        Args:
            state_dict: of a Composite of the same optimizers in the same order.

        Raises:
            ValueError: it was saved for other optimizers, for others of their param groups or parameters, or what a
                part refuses.

        """
        self._groups.synced()
        shares = split(state_dict, self._groups)
        before = [(part.param_groups, part.state) for part in self.optimizers]
        try:
            for part, share in zip(self.optimizers, shares, strict=True):
                part.load_state_dict(share)
        except Exception:
            for part, (param_groups, state) in zip(self.optimizers, before, strict=True):
                part.param_groups, part.state = param_groups, state
            raise
        finally:
            self._groups.synced()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform one step of every part.

        Args:
            closure: reevaluates the model and returns the loss; called once, with gradients enabled, before any part
                steps.

        Returns:
            What the closure returned, else None.

        Raises:
            Exception: what a part raises; the parts before it have made their steps then.

        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._groups.synced()  # a group may have been put into the list
        if hasattr(self, "grad_scale") or hasattr(self, "found_inf"):
            with _handed_on(self, self.optimizers):
                self._step_parts()
        else:
            self._step_parts()
        return loss

    def _step_parts(self) -> None:
        for part in self.optimizers:
            part.step()


def check_parts(optimizers: Sequence[Optimizer]) -> tuple[Optimizer, ...]:
    """The parts of a Composite of `optimizers`; raises for what cannot be one."""
    parts: list[Optimizer] = []
    for index, one in enumerate(optimizers):
        if not isinstance(one, Optimizer):
            raise TypeError(
                f"Composite is made of torch.optim.Optimizers, not of a {type(one).__name__} (part {index})"
            )
        for part in one.optimizers if isinstance(one, Composite) else [one]:
            if any(isinstance(inner, Composite) for inner in all_in(part)):
                raise ValueError(
                    f"part {index} of the Composite, {full_name(part)}, holds one itself; put the LARC around the "
                    "parts of that, or around the whole"
                )
            if any(map(needs_closure, all_in(part))):
                raise TypeError(
                    f"Composite needs one gradient per step, but {full_name(part)} evaluates its closure several times"
                )
            parts.append(part)
    if not parts:
        raise ValueError("Composite got an empty list of optimizers")
    return tuple(parts)


@contextmanager
def _handed_on(optimizer: Optimizer, parts: Sequence[Optimizer]) -> Iterator[None]:
    """Inside, the parts have what a GradScaler has set on `optimizer`; afterwards what they had before."""
    before = [
        (part, name, getattr(part, name, _ABSENT))
        for part in parts
        for name in _SCALER_ATTRIBUTES
        if hasattr(optimizer, name)
    ]
    try:
        for part, name, _ in before:
            setattr(part, name, getattr(optimizer, name))
        yield
    finally:
        for part, name, value in before:
            if value is not _ABSENT:
                setattr(part, name, value)
            elif hasattr(part, name):
                delattr(part, name)
