"""What the workers of a NovoGrad step are told beside the layers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.optim.optimizer import _to_scalar


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    r"""One param group's options under the names of `NovoGrad`, and what follows from them.

    Args:
        lr: :class:`NovoGrad` explains this and the others; a one-element tensor is held as a 0-dim one.
        averaging: :math:`s`, what a normalized gradient is multiplied with.
        signed_averaging: the same, negative with `maximize`.
        decay: :math:`s \lambda`, what the weights are multiplied with in the first moment.

    """

    lr: float | Tensor
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    grad_averaging: bool
    amsgrad: bool
    luc: bool
    luc_trust: float
    luc_eps: float
    maximize: bool
    capturable: bool
    differentiable: bool
    averaging: float = field(init=False)
    signed_averaging: float = field(init=False)
    decay: float = field(init=False)

    def __post_init__(self) -> None:
        averaging = 1 - self.beta1 if self.grad_averaging else 1.0
        object.__setattr__(self, "lr", _to_scalar(self.lr))
        object.__setattr__(self, "averaging", averaging)
        object.__setattr__(self, "signed_averaging", -averaging if self.maximize else averaging)
        object.__setattr__(self, "decay", averaging * self.weight_decay)

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> "Options":
        """Those of a param group of `NovoGrad`."""
        beta1, beta2 = group["betas"]
        return cls(
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            grad_averaging=group["grad_averaging"],
            amsgrad=group["amsgrad"],
            luc=group["luc"],
            luc_trust=group["luc_trust"],
            luc_eps=group["luc_eps"],
            maximize=group["maximize"],
            capturable=group["capturable"],
            differentiable=group["differentiable"],
        )
