"""The C++ kernels ask for all memory before they write anything: asking can move it, and can fail."""

import pytest
import torch

from lightning_novograd.optim import LARC, NovoGrad

SIZES = [70_000, 5, 3 * 4096, 200_000]  # one batch and several, one chunk and several
OPTIMIZERS = {
    "novograd": lambda params: NovoGrad(params, lr=0.1, weight_decay=0.1, amsgrad=True),
    "novograd, luc": lambda params: NovoGrad(params, lr=0.1, luc=True),
    "larc, novograd": lambda params: LARC(NovoGrad(params, lr=0.1)),
    "larc, sgd": lambda params: LARC(torch.optim.SGD(params, lr=0.1, momentum=0.9)),
    "larc, adamw": lambda params: LARC(torch.optim.AdamW(params, lr=0.1)),
    "larc, rmsprop": lambda params: LARC(torch.optim.RMSprop(params, lr=0.1)),
}


@pytest.fixture(autouse=True)
def two_threads(cpp_kernels):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def values(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator) for size in SIZES]


def started(name):
    """An optimizer after its first step, which has made its state, and gradients for the second."""
    params = [torch.nn.Parameter(value) for value in values(0)]
    optimizer = OPTIMIZERS[name](params)
    for seed in (1, 2):
        for param, grad in zip(params, values(seed), strict=True):
            param.grad = grad
        if seed == 1:
            optimizer.step()
    return optimizer, params


def contents(optimizer, params):
    state = [value for param in params for value in optimizer.state[param].values() if isinstance(value, torch.Tensor)]
    return [tensor.detach().clone() for tensor in (*params, *state)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_copy_on_write_tensors_are_stepped_as_any_others(name):
    expected, expected_params = started(name)
    optimizer, params = started(name)
    sources = []

    def lazy(tensor):
        sources.append((tensor, tensor.clone()))
        return torch._lazy_clone(tensor)

    for param in params:
        param.data = lazy(param.detach())
        param.grad = lazy(param.grad)
        state = optimizer.state[param]
        state.update({key: lazy(value) for key, value in state.items() if isinstance(value, torch.Tensor)})
    for stepped in (expected, optimizer):
        stepped.step()
    for value, wanted in zip(contents(optimizer, params), contents(expected, expected_params), strict=True):
        assert torch.equal(value, wanted)
    assert all(torch.equal(source, before) for source, before in sources)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_clones_of_one_memory_are_layers_of_their_own(name):
    """As long as nobody has written to them, they have one address."""
    memory = values(0)[0]
    params = [torch.nn.Parameter(torch._lazy_clone(memory)) for _ in range(2)]
    others = [torch.nn.Parameter(memory.clone()) for _ in range(2)]
    for layers in (params, others):
        optimizer = OPTIMIZERS[name](layers)
        for layer, seed in zip(layers, (1, 2), strict=True):
            layer.grad = values(seed)[0]
        optimizer.step()
    for param, other in zip(params, others, strict=True):
        torch.testing.assert_close(param, other)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "larc, rmsprop"])
@pytest.mark.parametrize("which", ["grad", "param"])
def test_a_layer_without_memory_is_an_error_and_leaves_all_as_it_was(name, which):
    """As FSDP frees the memory of layers that it has resharded."""
    optimizer, params = started(name)
    freed = params[-1].grad if which == "grad" else params[-1]
    others = params[:-1] if which == "param" else params
    before = contents(optimizer, others)
    freed.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError):
        optimizer.step()
    for value, wanted in zip(contents(optimizer, others), before, strict=True):
        assert torch.equal(value, wanted)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "larc, rmsprop"])
@pytest.mark.parametrize("layer", [0, -1])
def test_a_gradient_of_zeros_without_memory_is_one_of_zeros(name, layer):
    """As torch makes it in forward-mode differentiation; its storage has a size all the same."""
    expected, expected_params = started(name)
    optimizer, params = started(name)
    expected_params[layer].grad = torch.zeros_like(params[layer])
    params[layer].grad = torch._efficientzerotensor(params[layer].shape)
    for stepped in (expected, optimizer):
        stepped.step()
    torch.testing.assert_close(contents(optimizer, params), contents(expected, expected_params))


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "larc, rmsprop"])
def test_a_layer_of_zeros_without_memory_is_an_error_and_leaves_all_as_it_was(name):
    optimizer, params = started(name)
    before = contents(optimizer, params[:-1])
    params[-1].data = torch._efficientzerotensor(params[-1].shape)
    with pytest.raises(RuntimeError, match="no memory"):
        optimizer.step()
    torch.testing.assert_close(contents(optimizer, params[:-1]), before, rtol=0, atol=0)
