"""Layer-wise clipping of the learning rate (`luc`)."""

import torch
from torch import Tensor

from lightning_novograd.optim.norms import squared_norms
from lightning_novograd.optim.novograd.options import Options


def clipped_step_sizes(
    weights: list[Tensor], moments: list[Tensor], wholes: list[Tensor] | None, options: Options
) -> list[Tensor]:
    r"""Per layer, :math:`\min(\gamma, \tau \|w\| / (\|m\| + \epsilon_l))`.

    Args:
        weights: before the step.
        moments: after it.
        wholes: the DTensors that both are laid out as, where they are local shards.
        options: of the layers' param group.

    """
    lr = options.lr
    sq_norms = squared_norms([*weights, *moments], None if wholes is None else [*wholes, *wholes])
    step_sizes = []
    for weight_sq_norm, moment_sq_norm in zip(sq_norms[: len(weights)], sq_norms[len(weights) :], strict=True):
        denom = moment_sq_norm.sqrt() + options.luc_eps
        # With luc_eps = 0, a layer of zeros without momentum has 0 / 0; it must not move.
        ratio = options.luc_trust * weight_sq_norm.sqrt() / denom.masked_fill(denom == 0, torch.inf)
        step_sizes.append(torch.minimum(ratio, lr.to(ratio)) if isinstance(lr, Tensor) else ratio.clamp(max=lr))
    return step_sizes
