"""Under transforms, tracing and fake tensors a step is what it is without, also on other values than were traced."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from lightning_novograd.optim import LARC, NovoGrad

pytestmark = pytest.mark.usefixtures("kernels")  # each test with and without the C++ kernels

NUMEL = 6
OPTIMIZERS = {
    "novograd": lambda params: NovoGrad(params, lr=0.1, weight_decay=0.01, amsgrad=True),
    "luc": lambda params: NovoGrad(params, lr=0.1, luc=True),
    "larc-sgd": lambda params: LARC(torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.01)),
    "larc-sgd-update": lambda params: LARC(torch.optim.SGD(params, lr=0.1), target="update"),
    "larc-novograd": lambda params: LARC(NovoGrad(params, lr=0.1)),
    "larc-rmsprop": lambda params: LARC(torch.optim.RMSprop(params, lr=0.1, foreach=False)),
    "larc-adamw": lambda params: LARC(torch.optim.AdamW(params, lr=0.1, foreach=False)),
}
GRADS = torch.linspace(-1, 1, NUMEL), 1000 * torch.arange(1.0, NUMEL + 1)
every_optimizer = pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)


class Training:
    """An optimizer whose state exists, and steps of it that begin at the same place."""

    def __init__(self, build):
        self.param = torch.linspace(1, 2, NUMEL)
        self.optimizer = build([self.param])
        self.param.grad = torch.ones(NUMEL)
        self.optimizer.step()
        tensors = [self.param, *(v for v in self.optimizer.state[self.param].values() if torch.is_tensor(v))]
        self.start = [(tensor, tensor.clone()) for tensor in tensors]

    def step(self, grad):
        for tensor, value in self.start:
            tensor.copy_(value)
        return self.step_on(grad)

    def step_on(self, grad):
        self.param.grad = grad
        with torch.no_grad():
            self.optimizer.step()
        return self.param.clone()


def new_step(build):
    """Of an optimizer that is new; what it makes of weights."""

    def step(weight, grad):
        param = weight.clone()
        param.grad = grad
        build([param]).step()
        return param

    return step


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"larc-adamw"}))  # torch's own AdamW reads its count of steps
@pytest.mark.parametrize("pre_dispatch", [False, True], ids=["make_fx", "pre_dispatch"])
def test_a_graph_steps_on_other_gradients(name, pre_dispatch):
    training = Training(OPTIMIZERS[name])
    expected = training.step(GRADS[1])
    training.step(GRADS[0])
    graph = make_fx(lambda grad: training.step_on(grad), pre_dispatch=pre_dispatch)(GRADS[0])
    for tensor, value in training.start:
        tensor.copy_(value)
    torch.testing.assert_close(graph(GRADS[1]), expected, rtol=1e-5, atol=0)
    assert not [node for node in graph.graph.nodes if "lightning_novograd" in str(node.target)]


@every_optimizer
@pytest.mark.parametrize("batched", [True, False], ids=["gradients", "one-gradient"])
def test_vmap(build, batched):
    weights, grads = torch.linspace(1, 2, 3 * NUMEL).view(3, NUMEL), torch.linspace(-1, 1, 3 * NUMEL).view(3, NUMEL)
    expected = torch.stack([new_step(build)(weights[i], grads[i] if batched else grads[0]) for i in range(3)])
    found = torch.func.vmap(new_step(build), in_dims=(0, 0 if batched else None))(
        weights, grads if batched else grads[0]
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@every_optimizer
def test_functionalize(build):
    weight = torch.linspace(1, 2, NUMEL)
    found = torch.func.functionalize(new_step(build))(weight, GRADS[0])
    torch.testing.assert_close(found, new_step(build)(weight, GRADS[0]), rtol=1e-5, atol=0)


@every_optimizer
def test_jvp(build):
    weight = torch.linspace(1, 2, NUMEL)
    found, _ = torch.func.jvp(lambda grad: new_step(build)(weight, grad), (GRADS[0],), (torch.ones(NUMEL),))
    torch.testing.assert_close(found, new_step(build)(weight, GRADS[0]), rtol=1e-5, atol=0)


@every_optimizer
@pytest.mark.parametrize("tensor_lr", [False, True], ids=["number", "tensor"])
def test_fake_tensors(build, tensor_lr):
    with FakeTensorMode():
        model = torch.nn.Linear(5, 7)
        optimizer = build(model.parameters())
        if tensor_lr:
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(0.1)
        for _ in range(2):
            model(torch.randn(4, 5)).sum().backward()
            optimizer.step()
