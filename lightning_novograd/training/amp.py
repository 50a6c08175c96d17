"""Whether an optimizer has stepped, so that a schedule can wait when a GradScaler skips."""

from typing import Any

from torch.optim import Optimizer


class StepCount:
    """Notes each step that `optimizer` really makes.

    A GradScaler that finds an overflow does not call `step`, so the hook does not run; nothing is read from the device.
    Optimizers that take the scale into their kernel (`fused=True`) are always called and decide on the device: for
    these, and only under a GradScaler, the flag is read back, which waits for the device as the GradScaler itself does
    for all others.

    Args:
        optimizer: to watch.

    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._stepped = False
        optimizer.register_step_post_hook(self._on_step)

    def _on_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is None or not found_inf.item():
            self._stepped = True

    def advanced(self) -> bool:
        """Whether there was a step since the last call."""
        stepped, self._stepped = self._stepped, False
        return stepped
