"""Whether a schedule that counts optimizer steps is stepped as often as the optimizer steps."""

import warnings
from typing import Any

import torch
from torch.optim import Optimizer

# So many steps too few before anything is said: a rehearsal before the training, say, is no mistake
_MANY = 10
# On the optimizer, so that all its schedules share one hook; neither is copied or pickled with an optimizer
_COUNT = "_lightning_novograd_steps"


def optimizer_steps(optimizer: Optimizer) -> int:
    """How often `optimizer` has stepped since the first call for it."""
    if not hasattr(optimizer, _COUNT):
        setattr(optimizer, _COUNT, 0)
        # wrappers of other packages may be Optimizers in name only
        if hasattr(optimizer, "_optimizer_step_post_hooks"):
            optimizer.register_step_post_hook(_count)
    return getattr(optimizer, _COUNT)


def _count(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    # A compiled step would be compiled anew for each number. Under a GradScaler a fused optimizer is called for steps
    # that it then skips on the device, and only the device knows which.
    if not torch.compiler.is_compiling() and getattr(optimizer, "found_inf", None) is None:
        setattr(optimizer, _COUNT, getattr(optimizer, _COUNT, 0) + 1)


class StepWatch:
    """Notices that an optimizer makes many steps between two of its schedule's, and warns once.

    Plain numbers: it is copied and pickled with the schedule. A schedule that is stepped without its optimizer, as by
    micro-batches of an accumulation or after a step that a GradScaler skipped, is none of its business.
    """

    def __init__(self) -> None:
        self._seen: int | None = None
        self._behind = 0
        self._warned = False

    def restart(self) -> None:
        """Whatever the optimizer did up to the schedule's next step is right: a resumed run, a member's turn."""
        self._seen, self._behind = None, 0

    def on_step(self, optimizer: Optimizer, name: str, steps_apart: int | None) -> None:
        """Before a step of the schedule `name`, which expects `steps_apart` optimizer steps since its last one."""
        now = optimizer_steps(optimizer)
        made, self._seen = 0 if self._seen is None else now - self._seen, now
        if steps_apart is None or self._warned:
            return
        self._behind = max(0, self._behind + made - steps_apart)
        if self._behind >= _MANY and made > steps_apart:
            self._warned = True
            warnings.warn(
                f"{name} counts optimizer steps, but the optimizer made {made} between two of the schedule's own, as "
                "if those were epochs: the learning rate changes too slowly. Step the schedule after every optimizer "
                "step. An optim block does so by itself; in configure_optimizers return 'lr_scheduler': {'scheduler': "
                "..., 'interval': 'step'}; in place of LightningCLI use lightning_novograd.training.cli.OptimCLI. If "
                "it is meant to count something else than steps, set scheduler.steps_apart = None",
                UserWarning,
                stacklevel=3,
            )
