"""LARC: layer-wise adaptive rate control around any optimizer that needs one gradient per step.

The class is the wrapped optimizer with another step; `gradient` and `update` are the two ways to make it, `cpu` and
`native` the fused workers.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import Optimizer, _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from lightning_novograd.errors import choices
from lightning_novograd.optim.kernels.cpu import library
from lightning_novograd.optim.kernels.tracing import is_traced
from lightning_novograd.optim.larc.factors import Factors
from lightning_novograd.optim.larc.fused import fused_step
from lightning_novograd.optim.larc.gradient import scaled_gradient_step
from lightning_novograd.optim.larc.memory import Scratch, empty_vector
from lightning_novograd.optim.larc.options import (
    OPTIONS,
    TARGETS,
    check_group,
    check_one_target,
    check_optimizer,
    check_options,
    refuse_sparse_gradients,
    settle_options,
)
from lightning_novograd.optim.larc.pieces import ParamGroup, cache_sized, restricted_to
from lightning_novograd.optim.larc.update import limited_step
from lightning_novograd.optim.norms import is_sharded
from lightning_novograd.optim.novograd.optimizer import NovoGrad
from lightning_novograd.optim.novograd.validation import refuse_unfused
from lightning_novograd.optim.parameters import listed_params
from lightning_novograd.optim.wrapped import Wrapper, add_to, all_in

# A gradient scaled by c scales the steps of these by c: scaling the gradient controls the step.
_FOLLOW_GRADIENT_SCALE = (torch.optim.SGD, torch.optim.ASGD)
# These divide by the size of their own gradients or take its sign only: scaling the gradient controls nothing.
_UNDO_GRADIENT_SCALE = (
    NovoGrad,
    torch.optim.Adadelta,
    torch.optim.Adafactor,
    torch.optim.Adagrad,
    torch.optim.Adam,
    torch.optim.Adamax,
    torch.optim.AdamW,
    torch.optim.Muon,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Rprop,
)
# What these do to a layer depends on that layer alone.
_LAYER_BY_LAYER = (*_FOLLOW_GRADIENT_SCALE, *_UNDO_GRADIENT_SCALE)


class LARC(Wrapper):
    r"""Layer-wise adaptive rate control: limits each layer's step to a fraction of the size of its weights.

    A layer is one parameter tensor :math:`w` with gradient :math:`g`; :math:`\gamma` and :math:`\lambda` are its
    group's `lr` and `weight_decay`, :math:`\tau` is `trust_coefficient` and :math:`\mu` is `min_update`.
    A layer's factor is

    .. math::
        r &= \tau \|w\| / (s + \epsilon) \\
        f &= \min(\max(r / \gamma, \mu), 1) \text{ with clip, else } \max(r, \mu)

    - `target="gradient"`: :math:`s = \|g\| + \lambda \|w\|`. The wrapped optimizer gets the gradient
      :math:`f (g + \lambda w)` and no weight decay.
    - `target="update"`: the wrapped optimizer makes its step :math:`\Delta w`, with decay, momentum and all;
      :math:`s = \|\Delta w\| / \gamma`, and the step becomes :math:`f \Delta w`. Whatever the optimizer, its length is
      then at most :math:`\tau \|w\|` with `clip`, and :math:`\gamma \tau \|w\|` without, up to :math:`\epsilon` and the
      rounding of :math:`w`. With `clip`, a step within the bound is left exactly as it is (of Adam and AdamW, up to
      rounding where the C++ kernels have been built).
    - `target="auto"`: gradient around SGD and ASGD, update around all others. An optimizer that divides by the
      size of its own gradients (NovoGrad, Adam and kin) undoes a scaling of them.

    Where the weights, the gradient or (target update) the step of a layer are all zero, :math:`f = 1`: weights can
    leave zero. With `min_update > 0`, zero weights have :math:`f = \mu`. With target gradient, a zero gradient
    is not decayed. Weights of infinite norm bound no step: :math:`f = 1`. Where :math:`\gamma = 0`,
    :math:`r / \gamma` is 0 for :math:`r = 0` and infinite for all others.

    Args:
        optimizer: the optimizer to wrap, which keeps `param_groups`, `state` and `defaults` for both.
        trust_coefficient: :math:`\tau \ge 0`, the length of a step relative to the weights.
        clip: only ever shorten steps; otherwise set their length.
        eps: :math:`\epsilon \ge 0`, in units of the gradient norm.
        min_update: :math:`\mu \ge 0`, the smallest factor. It goes before the bound.
        target: "gradient", "update" or "auto"; the attribute `target` is the resolved choice.

    The options live in the param groups as `larc_trust_coefficient`, `larc_clip`, `larc_eps`, `larc_min_update` and
    `larc_target`: they are saved in the state_dict and, the target excepted, may differ between groups. A group with
    `larc=False` is left to the wrapped optimizer; do so for biases and normalization layers. The state_dict of a bare
    optimizer like the wrapped one loads too; then LARC's options stay as they are.

    State: that of the wrapped optimizer. The attribute `factors` holds the last step's factors, as pairs of layers and
    a vector. During a step there is one more copy of the gradients (target gradient) or of the weights (target update);
    on the CPU it is kept between steps, because fresh memory costs more than the arithmetic. There is none for the
    float32 layers of SGD (target gradient) and of NovoGrad, Adam and AdamW (target update) that the fused workers of
    `cpu` and `native` take.

    When `step` returns or raises, `weight_decay` is what it was, and so is `p.grad`: with target gradient even if the
    wrapped optimizer writes into the gradients that it gets.

    Raises:
        TypeError: `optimizer` is no torch Optimizer or evaluates its closure several times (LBFGS).
        ValueError: an option out of range, an unknown target, or an optimizer that is under LARC already, has
            `differentiable=True`, has no `lr`, or has parameters flattened by FSDP1 or DeepSpeed.
        RuntimeError: sparse gradients.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = LARC(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), trust_coefficient=0.001)
        >>> model(torch.ones(3, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> optimizer.target
        'gradient'

    You, Gitman and Ginsburg, *Large Batch Training of Convolutional Networks*, https://arxiv.org/abs/1708.03888. Target
    gradient gives the values of apex's LARC and, without weight decay, of OpenSeq2Seq's. Target update is ours; around
    NovoGrad it is the optimizer's own `luc`, except that zero weights can move. More in `docs/larc.md`.

    """

    def __init__(
        self,
        optimizer: Optimizer,
        trust_coefficient: float = 0.02,
        clip: bool = True,
        eps: float = 1e-8,
        min_update: float = 0.0,
        target: str = "auto",
    ) -> None:
        check_optimizer(optimizer)
        if target not in TARGETS:
            raise ValueError(f"Invalid target: {target!r}{choices(target, TARGETS)}")
        undoing = [type(one).__name__ for one in all_in(optimizer) if isinstance(one, _UNDO_GRADIENT_SCALE)]
        if target == "gradient" and undoing:
            warnings.warn(
                f"LARC(target='gradient') does not bound the steps of {undoing[0]}, which divides by the "
                "size of its own gradients; use target='update' or 'auto'",
                stacklevel=2,
            )
        if target == "auto":
            target = "gradient" if isinstance(optimizer, _FOLLOW_GRADIENT_SCALE) else "update"
        options = {
            "larc": True,
            "larc_trust_coefficient": trust_coefficient,
            "larc_clip": clip,
            "larc_eps": eps,
            "larc_min_update": min_update,
            "larc_target": target,
        }
        settle_options(optimizer, options)
        # As copies and unpickled ones begin; the base's __init__ would put new param_groups and state into both.
        self.__setstate__({"optimizer": optimizer, "target": options.pop("larc_target")})
        self.defaults.update(options)
        self._complete_groups()

    # The optimizer that is wrapped.
    optimizer: Optimizer

    @property
    def target(self) -> str:
        """What is scaled, "gradient" or "update"; as all options it stands in the param groups."""
        return str(self.param_groups[0].get("larc_target", self._target))

    @property
    def _option_defaults(self) -> dict[str, Any]:
        """What groups get that lack an option; the target is not among the `defaults`, which know no other groups."""
        return {
            **{option: self.defaults[option] for option in OPTIONS if option in self.defaults},
            "larc_target": self.target,
        }

    @property
    def param_groups(self) -> list[ParamGroup]:
        """The wrapped optimizer's."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, param_groups: list[ParamGroup]) -> None:
        self.optimizer.param_groups = param_groups

    @property
    def state(self) -> Any:
        """The wrapped optimizer's."""
        return self.optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.optimizer.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The wrapped optimizer's, with LARC's options."""
        return self.optimizer.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.optimizer.defaults = defaults

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer, "target": self.target}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.factors: Factors = []
        self._scratch, self._saved = Scratch(), empty_vector()
        self._target = state["target"]  # for groups that do not have it yet
        super().__setstate__({"optimizer": state["optimizer"]})

    def __repr__(self) -> str:
        return f"LARC(target={self.target!r}, optimizer={self.optimizer!r})"

    def add_param_group(self, param_group: ParamGroup) -> None:
        """Add a param group to the wrapped optimizer.

        Args:
            param_group: `params` and options, LARC's among them; those left out take the defaults.

        Raises:
            ValueError: an option of LARC is unknown or out of range, or the constructor would refuse the group.

        """
        index = len(self.param_groups)
        if isinstance(param_group, dict):
            options = {**self.defaults, **self._option_defaults, **param_group}
            check_options(options)
            check_one_target([*self.param_groups, options])
            check_group(type(self.optimizer).__name__, index, options, listed_params(param_group))
        add_to(self.optimizer, param_group)
        self._complete_groups()

    def _own_state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state_dict; LARC's options are in its param groups."""
        return self.optimizer.state_dict()

    def _load_own(self, state_dict: dict[str, Any]) -> None:
        """Load into the wrapped optimizer.

        Args:
            state_dict: of a LARC, or of a bare optimizer like the wrapped one: then LARC's options stay as they are.

        Raises:
            ValueError: an option of LARC is unknown or out of range.

        """
        defaults = self._option_defaults
        options = [{name: group.get(name, value) for name, value in defaults.items()} for group in self.param_groups]
        saved = state_dict["param_groups"]
        if len(saved) == len(options):
            for kept, group in zip(options, saved, strict=True):
                if "larc" in group:  # where the state of a LARC has no target yet, the next step adds it
                    del kept["larc_target"]
                check_options({**defaults, **kept, **group})
            check_one_target(saved)
            merged = [{**kept, **group} for kept, group in zip(options, saved, strict=True)]
            state_dict = {**state_dict, "param_groups": merged}
        self.optimizer.load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform one controlled step of the wrapped optimizer.

        Args:
            closure: reevaluates the model and returns the loss; called once, with gradients enabled, before any norm is
                taken.

        Returns:
            What the closure returned, else None.

        Raises:
            RuntimeError: sparse gradients.

        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._complete_groups()
        refuse_sparse_gradients([g for g in self.param_groups if g["larc"] or isinstance(self.optimizer, NovoGrad)])
        self.factors.clear()  # in place: the compiler of torch 2.10 takes no new value for the attribute
        if self._divisible():
            self._step_in_pieces()
        else:
            self._step_under_control([group for group in self.param_groups if group["larc"]])
        return loss

    def _complete_groups(self) -> None:
        options = self._option_defaults
        for group in self.param_groups:
            for option, default in options.items():
                group.setdefault(option, default)

    def _step_under_control(self, groups: list[ParamGroup]) -> None:
        """A step of the wrapped optimizer, in which the layers of `groups` are scaled."""
        if self.target == "gradient":
            self.factors.extend(scaled_gradient_step(self.optimizer, groups, self._scratch))
        else:
            self.factors.extend(limited_step(self.optimizer, groups, self._scratch, self._saved))

    def _step_in_pieces(self) -> None:
        """Step on a cache-sized piece of the layers at a time, or with a fused worker where there is one.

        Norms, scaling and the step each pass over the same memory; on a CPU most of their time is spent waiting for it.
        """
        if isinstance(self.optimizer, NovoGrad):
            refuse_unfused(self.optimizer)
        # the C++ kernels use the cores' own caches, of which two threads have about as much as one shared cache
        caches = max(1, torch.get_num_threads() // 2) if library.load() is not None else 1
        for group in self.param_groups:
            others = group["params"]
            step = fused_step(self.optimizer, self.target, group, self._saved)
            if step is not None:
                factors, others = step()
                self.factors.extend(factors)
            # those without a gradient may even lack a shape, until a lazy module's first forward
            for layers in cache_sized([p for p in others if p.grad is not None], caches):
                with restricted_to(self.optimizer, group, layers) as piece:
                    self._step_under_control([piece] if group["larc"] else [])

    def _divisible(self) -> bool:
        """Whether steps on some layers at a time are one step on all of them, to the layers and to onlookers."""
        optimizer = self.optimizer
        onlookers = (
            optimizer._optimizer_step_pre_hooks,
            optimizer._optimizer_step_post_hooks,
            _global_optimizer_pre_hooks,
            _global_optimizer_post_hooks,
            "step" in vars(optimizer),  # patched to see every call
        )
        return (
            not any(onlookers)
            and not is_traced()
            and type(optimizer) in _LAYER_BY_LAYER
            and all(
                p.device.type == "cpu" and not is_sharded(p) for group in self.param_groups for p in group["params"]
            )
        )
