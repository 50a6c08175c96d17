"""torch's default device and dtype are the user's: no optimizer's state, table or result depends on them."""

import copy
from contextlib import contextmanager

import pytest
import torch
from optim_db import STEPS, WORKERS, assert_close, layers, set_grads

from lightning_novograd.optim import NovoGrad
from lightning_novograd.optim.checkpoint import convert_state_dict
from lightning_novograd.optim.kernels.cuda.tables import AddressTable, ChunkTable
from lightning_novograd.optim.larc import LARC

SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
OPTIMIZERS = {
    **{f"novograd-{w}": lambda p, w=w: NovoGrad(p, amsgrad=True, **WORKERS[w]) for w in WORKERS},
    "novograd-luc": lambda p: NovoGrad(p, luc=True),
    **{f"larc-novograd-{w}": lambda p, w=w: LARC(NovoGrad(p, **WORKERS[w])) for w in WORKERS},
    "larc-sgd-update": lambda p: LARC(SGD(p, lr=0.1), target="update"),
    "larc-sgd": lambda p: LARC(SGD(p, lr=0.1, momentum=0.9)),
    "larc-sgd-nesterov": lambda p: LARC(SGD(p, lr=0.1, momentum=0.9, nesterov=True)),
    "larc-adam": lambda p: LARC(Adam(p, lr=0.1)),
    "larc-adamw": lambda p: LARC(AdamW(p, lr=0.1)),
    "larc-adamw-fused": lambda p: LARC(AdamW(p, lr=0.1, fused=True)),
    "larc-adamw-amsgrad": lambda p: LARC(AdamW(p, lr=0.1, amsgrad=True)),
    "larc-subclass": lambda p: LARC(type("Mine", (AdamW,), {})(p, lr=0.1)),
}
ADAMS = ("larc-adam", "larc-adamw", "larc-adamw-amsgrad", "larc-subclass")
# laid out alike in memory when they are loaded
KINDS = ["matrix", "conv", "vector", "scalar", "channels-last", "empty", "long"]


@contextmanager
def default_device():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


DEFAULTS = {"device": lambda: torch.device("meta"), "default device": default_device, "default dtype": default_dtype}


def torchs_adam_steps_under_a_default_device() -> bool:
    """Torch 2.10's counts its steps there, and then asks the count for its value."""
    param = torch.nn.Parameter(torch.ones(1))
    param.grad = torch.ones(1)
    try:
        with torch.device("meta"):
            Adam([param]).step()
    except RuntimeError:
        return False
    return True


every_default = pytest.mark.parametrize("default", DEFAULTS)


def tensors_of(state):
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}


@every_default
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_steps_and_states_are_the_same(kind, default, kernels):
    if default != "default dtype" and kind in ADAMS and not torchs_adam_steps_under_a_default_device():
        pytest.skip("this torch's own Adam fails under a default device")
    params, others = layers(torch.float32, KINDS), layers(torch.float32, KINDS)
    grads = []
    for step in range(STEPS):
        set_grads(params, step)
        grads.append({name: p.grad for name, p in params.items()})

    def train(mine, optimizer, steps):
        for step in steps:
            for name, p in mine.items():
                p.grad = grads[step][name]
            optimizer.step()

    plain = OPTIMIZERS[kind](params.values())
    train(params, plain, range(STEPS))
    with DEFAULTS[default]():
        optimizer = OPTIMIZERS[kind](others.values())
        train(others, optimizer, range(2))
        others, optimizer = copy.deepcopy((others, optimizer))
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        train(others, optimizer, range(2, STEPS))
    # torch's own count of Adam's steps has the default dtype; the C++ kernel leaves layers with a float64 one to torch
    exactly = not (default == "default dtype" and "adam" in kind)

    def assert_same(value, expected, what):
        if exactly:
            assert torch.equal(value.double(), expected.double()), what
        else:
            assert_close(value, expected.double(), torch.float32, what)

    for name, p in params.items():
        assert_same(others[name], p.detach(), name)
        state, other = tensors_of(plain.state[p]), tensors_of(optimizer.state[others[name]])
        assert state.keys() == other.keys()
        for key, value in state.items():
            assert other[key].device == value.device, key
            assert_same(other[key], value, f"{key} of {name}")
            assert other[key].dtype == value.dtype or key == "step", key  # torch's own count is of the default dtype
    for _, factors in getattr(optimizer, "factors", ()):
        assert (factors.device.type, factors.dtype) == ("cpu", torch.float32)


@every_default
@pytest.mark.parametrize("format_", ["nemo", "timm", "pytorch_optimizer", "apex"])
def test_states_are_converted_alike(format_, default):
    params = layers(torch.float32, KINDS)
    optimizer = NovoGrad(params.values())
    set_grads(params, 0)
    optimizer.step()

    def there_and_back():
        there = convert_state_dict(optimizer.state_dict(), target=format_, step=1)
        if format_ == "apex":  # with numbers, and with a correction that has come to its end
            norms = [norms.tolist() for norms in there["param_groups"][0]["exp_avg_sq"]]
            there["param_groups"][0] |= {"exp_avg_sq": norms, "bias_correction": True, "step": 10_000}
        else:
            key = "grads_ema" if format_ == "pytorch_optimizer" else "exp_avg_sq"
            for state in there["state"].values():
                state[key] = state[key].item()
        loaded = NovoGrad(params.values())
        loaded.load_state_dict(convert_state_dict(there, reg_inside_moment=True))
        return loaded.state_dict()["state"]

    expected = there_and_back()
    with DEFAULTS[default]():
        states = there_and_back()
    assert states.keys() == expected.keys()
    for index, state in states.items():
        for key, value in state.items():
            assert value.dtype == expected[index][key].dtype
            assert torch.equal(value, expected[index][key])


@every_default
def test_tables_lie_where_they_are_asked_for(default):
    with DEFAULTS[default]():
        addresses, chunks = AddressTable(1, 2, torch.device("cpu")), ChunkTable([1, 5], 4, torch.device("cpu"))
        assert addresses.holding([1, 2], capturable=True).tolist() == [[1, 2]]
        addresses._spare = tuple(torch.zeros(1, 2, dtype=torch.int64, device="cpu") for _ in range(2))
        assert addresses._captured_holding([3, 4]).tolist() == [[3, 4]]
    assert chunks.layer_of_chunk.tolist() == [0, 1, 1]
    assert chunks.sizes.tolist() == [1, 5]
