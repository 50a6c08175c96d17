"""Complex tensors whose conjugate bit is set: memory holds other values than they have."""

import pytest
import torch

from lightning_novograd.optim import LARC, NovoGrad
from lightning_novograd.optim.novograd.functional import novograd

pytestmark = pytest.mark.usefixtures("kernels")  # each test with and without the C++ kernels

VALUES = torch.complex(torch.linspace(1, 2, 5), torch.linspace(-1, 1, 5))
OPTIMIZERS = {
    "novograd": lambda params: NovoGrad(params, lr=0.1),
    "single": lambda params: NovoGrad(params, lr=0.1, foreach=False),
    "foreach": lambda params: NovoGrad(params, lr=0.1, foreach=True),
    "luc": lambda params: NovoGrad(params, lr=0.1, luc=True),
    "larc-novograd": lambda params: LARC(NovoGrad(params, lr=0.1)),
    "larc-sgd-update": lambda params: LARC(torch.optim.SGD(params, lr=0.1), target="update"),
    "larc-rmsprop": lambda params: LARC(torch.optim.RMSprop(params, lr=0.1)),
    "larc-adamw": lambda params: LARC(torch.optim.AdamW(params, lr=0.1)),
}
OTHERS = ("larc-rmsprop", "larc-adamw")  # torch's, which refuse gradients with the bit
every_optimizer = pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)


@every_optimizer
def test_such_a_parameter_is_refused_and_nothing_moves(build):
    """It stood still, while its moments moved."""
    params = [VALUES.clone(), VALUES.clone().conj()]
    for param in params:
        param.grad = VALUES.clone()
    optimizer = build(params)
    with pytest.raises(RuntimeError, match="conjugate"):
        optimizer.step()
    assert torch.equal(params[0], VALUES)


def test_nor_do_the_groups_before_it():
    params = [VALUES.clone(), VALUES.clone().conj()]
    for param in params:
        param.grad = VALUES.clone()
    with pytest.raises(RuntimeError, match="conjugate"):
        NovoGrad([{"params": [param]} for param in params], lr=0.1).step()
    assert torch.equal(params[0], VALUES)


@pytest.mark.parametrize("build", [build for name, build in OPTIMIZERS.items() if name not in OTHERS])
def test_a_gradient_may_have_it(build):
    found = []
    for grad in (VALUES.conj(), VALUES.conj().resolve_conj()):
        param = VALUES.clone()
        optimizer = build([param])
        for _ in range(2):
            param.grad = grad
            optimizer.step()
        found.append(param)
    assert torch.equal(*found)
    assert not torch.equal(found[0], VALUES)


def test_target_gradient_leaves_such_a_parameter_to_the_wrapped_optimizer():
    found = []
    for param in (VALUES.clone().conj(), VALUES.clone().conj().resolve_conj()):
        param.grad = VALUES.clone()
        LARC(torch.optim.SGD([param], lr=0.1, weight_decay=0.1)).step()
        found.append(param.resolve_conj())
    torch.testing.assert_close(*found, rtol=1e-6, atol=0)


@pytest.mark.parametrize("conjugated", ["weight", "moment"])
def test_nor_does_the_function_write_to_a_copy(conjugated):
    weight, moment = (VALUES.clone().conj() if name == conjugated else VALUES.clone() for name in ("weight", "moment"))
    with pytest.raises(RuntimeError, match="conjugate"):
        novograd(
            [weight], [VALUES], [moment], [torch.zeros(())], [], has_complex=True, lr=0.1, beta1=0.9, beta2=0.5,
            eps=1e-8, weight_decay=0.0, grad_averaging=False, amsgrad=False, luc=False, luc_trust=1e-3, luc_eps=1e-8,
            maximize=False,
        )  # fmt: skip
