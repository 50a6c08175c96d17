"""NovoGrad in float64, written as its formulas and nothing else: what every worker is compared with."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer


class ReferenceNovoGrad:
    """Keeps its own float64 copies of the parameters; `step(grads)` takes one gradient or None per parameter.

    Beside every value it keeps the sum of the magnitudes of the terms that it was added up from: `param_terms` and
    `exp_avg_terms`. Terms that cancel leave the rounding of what they were, not of their sum.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.95, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        grad_averaging: bool = False,
        amsgrad: bool = False,
        luc: bool = False,
        luc_trust: float = 1e-3,
        luc_eps: float = 1e-8,
        maximize: bool = False,
    ) -> None:
        self.params = [_float64(p) for p in params]
        self.exp_avgs = [torch.zeros_like(p) for p in self.params]
        self.param_terms = [p.abs() for p in self.params]
        self.exp_avg_terms = [torch.zeros_like(terms) for terms in self.param_terms]
        self.exp_avg_sqs = [0.0] * len(params)
        self.max_exp_avg_sqs = [0.0] * len(params)
        self.lr, self.betas, self.eps, self.weight_decay = float(lr), betas, eps, weight_decay
        self.grad_averaging, self.amsgrad, self.maximize = grad_averaging, amsgrad, maximize
        self.luc, self.luc_trust, self.luc_eps = luc, luc_trust, luc_eps

    def step(self, grads: Sequence[Tensor | None]) -> None:
        beta1, beta2 = self.betas
        for i, grad in enumerate(grads):
            if grad is None:
                continue
            g = -_float64(grad) if self.maximize else _float64(grad)
            w = self.params[i]
            sq_norm = g.abs().square().sum().item()

            v = self.exp_avg_sqs[i]
            v = sq_norm if v == 0 else beta2 * v + (1 - beta2) * sq_norm
            self.exp_avg_sqs[i] = v
            if self.amsgrad:
                v = self.max_exp_avg_sqs[i] = max(v, self.max_exp_avg_sqs[i])

            d = math.sqrt(v) + self.eps
            u = (g / d if d > 0 else torch.zeros_like(g)) + self.weight_decay * w
            if self.grad_averaging:
                u = (1 - beta1) * u
            m = self.exp_avgs[i] = beta1 * self.exp_avgs[i] + u

            step_size = self.lr
            if self.luc:
                ratio = self.luc_trust * w.norm().item() / (m.norm().item() + self.luc_eps)
                step_size = min(ratio, step_size)
            self.params[i] = w - step_size * m
            self._add_up_terms(i, g.abs() / d if d > 0 else g.abs(), step_size)

    def _add_up_terms(self, i: int, normalized: Tensor, step_size: float) -> None:
        """The formulas of `step` with every sign a plus, and the relative error of LUC's two norms beside the rest."""
        beta1 = self.betas[0]
        u = normalized + self.weight_decay * self.param_terms[i]
        if self.grad_averaging:
            u = (1 - beta1) * u
        m = self.exp_avg_terms[i] = beta1 * self.exp_avg_terms[i] + u
        moved = step_size * m
        if self.luc:
            norms = step_size * m.norm().item() + self.luc_trust * self.param_terms[i].norm().item()
            moved = moved + self.exp_avgs[i].abs() * norms / (self.exp_avgs[i].norm().item() + self.luc_eps)
        self.param_terms[i] = self.param_terms[i] + moved

    def adopt(self, params: Sequence[Tensor], optimizer: Optimizer) -> None:
        """Take over the stored, rounded values of an optimizer, so that its next step can be judged alone."""
        for i, param in enumerate(params):
            state = optimizer.state.get(param)
            self.params[i] = _float64(param)
            self.param_terms[i] = self.params[i].abs()
            if state:
                self.exp_avgs[i] = _float64(state["exp_avg"])
                self.exp_avg_terms[i] = self.exp_avgs[i].abs()
                self.exp_avg_sqs[i] = state["exp_avg_sq"].item()
                self.max_exp_avg_sqs[i] = state["max_exp_avg_sq"].item() if self.amsgrad else 0.0


def _float64(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64, copy=True)
