"""The schedule of NVIDIA's QuartzNet and Jasper recipes: warmup, hold, then a constant factor per epoch."""

from torch.optim import Optimizer

from lightning_novograd.lr_scheduler.phases import PhasedLR, number, whole
from lightning_novograd.registry import register_scheduler


def hold_exponential(
    step: int,
    base_lr: float,
    *,
    max_steps: int,
    gamma: float,
    num_decays: int,
    warmup_steps: int = 0,
    hold_steps: int | None = None,
    min_lr: float = 0.0,
) -> float:
    """`max(base * gamma^ceil(num_decays * (s-H) / (M-H)), min_lr)`, `H = W + h` also without hold."""
    if warmup_steps > 0 and step <= warmup_steps:
        return base_lr * ((step + 1) / (warmup_steps + 1))
    hold_end = warmup_steps + (hold_steps or 0)
    if step <= hold_end:
        return base_lr
    if step > max_steps:
        return min_lr
    decays = -(-(step - hold_end) * num_decays // (max_steps - hold_end))  # rounded up, in integers
    return max(base_lr * gamma**decays, min_lr)


@register_scheduler("WarmupHoldAnnealExponential")
class WarmupHoldAnnealExponential(PhasedLR):
    """Warmup, hold, then the LR times `gamma`, `num_decays` times in equal distances; `min_lr` is a floor.

    With one decay for each epoch after warmup and hold it is the `exponential` policy of NVIDIA DeepLearningExamples,
    common/optimizers.py, but for the very first optimizer step, which runs at the full LR there.

    Args:
        optimizer: whose LR to set.
        max_steps: optimizer steps of the schedule; afterwards the LR is `min_lr`.
        gamma: factor, 0..1.
        num_decays: how often it is applied until `max_steps`, at least 1.
        warmup_steps: linear warmup to the base LR.
        warmup_ratio: the same as a share of `max_steps`, 0..1.
        hold_steps: steps at the base LR after warmup.
        hold_ratio: the same as a share of `max_steps`, 0..1.
        min_lr: floor, an absolute LR.
        last_epoch: step to continue from, -1 for a new run.

    """

    formula = staticmethod(hold_exponential)

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_steps: int,
        gamma: float,
        num_decays: int,
        warmup_steps: int | None = None,
        warmup_ratio: float | None = None,
        hold_steps: int | None = None,
        hold_ratio: float | None = None,
        min_lr: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        super().__init__(
            optimizer,
            last_epoch,
            max_steps=max_steps,
            min_lr=min_lr,
            warmup=(warmup_steps, warmup_ratio),
            hold=(hold_steps, hold_ratio),
            gamma=number("gamma", gamma, low=0.0, high=1.0),
            num_decays=whole("num_decays", num_decays, low=1),
        )
