"""fp16 with a GradScaler: whether an optimizer has stepped, and who unscales its gradients."""

from typing import Any

from torch.optim import Optimizer


class StepCount:
    """Counts the steps that `optimizer` really makes: `steps`.

    A GradScaler that finds an overflow does not call `step`, so the hook does not run; nothing is read from the device.
    Optimizers that take the scale into their kernel (`fused=True`) are always called and decide on the device: for
    these, and only under a GradScaler, the flag is read back, which waits for the device as the GradScaler itself does
    for all others.

    Args:
        optimizer: to watch.

    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.steps = 0
        self._told = 0
        optimizer.register_step_post_hook(self._on_step)

    def _on_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not skipped_on_device(optimizer):
            self.steps += 1

    def advanced(self) -> bool:
        """Whether there was a step since the last call."""
        told, self._told = self._told, self.steps
        return self.steps > told


def skipped_on_device(optimizer: Optimizer) -> bool:
    """Whether the step that `optimizer` has just made under a GradScaler changed nothing; reads the device's flag."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf.item())


def unscales_itself(optimizer: Optimizer) -> bool:
    """Whether a GradScaler leaves the gradients to the optimizer's step, as it does for `fused=True`."""
    return getattr(optimizer, "_step_supports_amp_scaling", False)


def loss_scale(trainer: Any, optimizer: Optimizer) -> float:
    """By what the gradients that `optimizer` is about to see are too large: 1 unless it unscales them itself."""
    scaler = getattr(getattr(trainer, "precision_plugin", None), "scaler", None)
    return scaler.get_scale() if scaler is not None and unscales_itself(optimizer) else 1.0


def leave_unscaling_to_scaler(optimizer: Optimizer) -> None:
    """Have a GradScaler unscale the gradients before the step, so that they can be clipped in between.

    Lightning refuses to clip for an optimizer that unscales in its own step: it would clip scaled gradients. Such an
    optimizer steps as well on gradients that are unscaled already, and is not called when there is an overflow.
    """
    if unscales_itself(optimizer):
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
