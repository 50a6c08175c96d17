"""The schedule of NVIDIA's QuartzNet and Jasper recipes: warmup, hold, then a constant factor per epoch."""

from typing import Any

from torch.optim import Optimizer

from lightning_novograd.lr_scheduler.phases import Unpack, WarmupHold, WarmupHoldLR, number, whole
from lightning_novograd.registry import register_scheduler


@register_scheduler("WarmupHoldAnnealExponential")
class WarmupHoldAnnealExponential(WarmupHoldLR):
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

    @staticmethod
    def annealing(
        step: int,
        base_lr: float,
        *,
        max_steps: int,
        warmup_steps: int,
        hold_steps: int,
        min_lr: float,
        gamma: float,
        num_decays: int,
        **_: Any,
    ) -> float:
        """`max(base * gamma^ceil(num_decays * (s-H) / (M-H)), min_lr)`, `H = W + h` also without hold."""
        begin = warmup_steps + hold_steps
        decays = -(-(step - begin) * num_decays // (max_steps - begin))  # rounded up, in integers
        return max(base_lr * gamma**decays, min_lr)

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_steps: int,
        gamma: float,
        num_decays: int,
        min_lr: float = 0.0,
        **phases: Unpack[WarmupHold],
    ) -> None:
        self.arguments = {
            "gamma": number("gamma", gamma, low=0.0, high=1.0),
            "num_decays": whole("num_decays", num_decays, low=1),
        }
        super().__init__(optimizer, max_steps=max_steps, min_lr=min_lr, **phases)
