"""Which parameters the optimizer takes: lazy and resized ones, and none of a group that it refuses."""

import copy

import pytest
import torch
from optim_db import WORKERS
from torch import nn

from lightning_novograd.optim import NovoGrad
from lightning_novograd.optim.larc import LARC

# NovoGrad, alone and under LARC, and LARC around others
OPTIMIZERS = {
    "novograd": NovoGrad,
    "larc-novograd": lambda params: LARC(NovoGrad(params)),
    "larc-sgd": lambda params: LARC(torch.optim.SGD(params, momentum=0.9)),
    "larc-adamw": lambda params: LARC(torch.optim.AdamW(params)),
}
every_optimizer = pytest.mark.parametrize("kind", OPTIMIZERS)


def train(model, optimizer, steps=2):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 3, generator=torch.Generator().manual_seed(0))).pow(3).mean().backward()
        optimizer.step()


@pytest.mark.parametrize("duplicate", [False, True], ids=["itself", "deepcopy"])
@every_optimizer
def test_lazy_layers_are_trained_once_they_have_a_shape(kind, duplicate, kernels):
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.LazyLinear(4))
    optimizer = OPTIMIZERS[kind](model.parameters())
    if duplicate:
        model, optimizer = copy.deepcopy((model, optimizer))
    model[0].weight.grad = torch.ones(3, 3)
    optimizer.step()  # steps of other layers do not wait for the lazy ones
    train(model, optimizer, steps=1)
    before = [p.detach().clone() for p in model.parameters()]
    train(model, optimizer)
    assert len(before) == 4
    assert not any(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("worker", WORKERS)
def test_lazy_layers_are_stepped_as_others(worker):
    lazy = nn.LazyLinear(4, bias=False)
    optimizer = NovoGrad(lazy.parameters(), lr=0.1, **WORKERS[worker])
    lazy(torch.ones(1, 3))
    plain = nn.Linear(3, 4, bias=False)
    plain.weight.data = lazy.weight.detach().clone()
    other = NovoGrad(plain.parameters(), lr=0.1, **WORKERS[worker])
    train(lazy, optimizer)
    train(plain, other)
    assert torch.equal(lazy.weight, plain.weight)


@every_optimizer
def test_a_state_is_loaded_before_lazy_layers_have_a_shape(kind):
    model, lazy = nn.Linear(3, 4), nn.LazyLinear(4)
    saved, optimizer = OPTIMIZERS[kind](model.parameters()), OPTIMIZERS[kind](lazy.parameters())
    train(model, saved)
    optimizer.load_state_dict(copy.deepcopy(saved.state_dict()))
    lazy.load_state_dict(model.state_dict())
    train(model, saved)
    train(lazy, optimizer)
    assert torch.equal(model.weight, lazy.weight)


@pytest.mark.parametrize("shape", [(7,), (4, 2), ()], ids=str)
@every_optimizer
def test_a_parameter_may_be_resized_before_its_first_step(kind, shape):
    param, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4, 3))
    optimizer = OPTIMIZERS[kind]([param, other])
    param.data = torch.ones(shape)
    param.grad = torch.ones(shape)
    optimizer.step()
    assert (param != 1).all()


def test_a_partition_in_the_place_of_a_lazy_layer_is_refused():
    model = nn.LazyLinear(4)
    optimizer = NovoGrad(model.parameters())
    model(torch.ones(1, 3))
    partition = nn.Parameter(torch.ones(16))
    partition.grad = torch.ones(16)
    optimizer.param_groups[0]["params"] = [partition]
    with pytest.raises(ValueError, match="flattened partition"):
        optimizer.step()


def flattened(mark):
    param = nn.Parameter(torch.ones(6))
    setattr(param, mark, 1)
    return param


REFUSED = {
    "lr": lambda first: {"params": [nn.Parameter(torch.ones(2))], "lr": -1.0},
    "misspelt option": lambda first: {"params": [nn.Parameter(torch.ones(2))], "larc_epps": 0.1},
    "larc option": lambda first: {"params": [nn.Parameter(torch.ones(2))], "larc_eps": -0.1},
    "differentiable": lambda first: {"params": [nn.Parameter(torch.ones(2))], "differentiable": True, "fused": True},
    "fsdp1": lambda first: {"params": [nn.Parameter(torch.ones(2)), flattened("_fsdp_flattened")]},
    "deepspeed": lambda first: {"params": iter([nn.Parameter(torch.ones(2)), flattened("ds_id")])},
    "not a dict": lambda first: [nn.Parameter(torch.ones(2))],
    "no params": lambda first: {"lr": 0.1},
    "a set": lambda first: {"params": {nn.Parameter(torch.ones(2))}},
    "no tensor": lambda first: {"params": [nn.Parameter(torch.ones(2)), 1.0]},
    "no leaf": lambda first: {"params": [nn.Parameter(torch.ones(2)) * 2]},
    "there already": lambda first: {"params": [nn.Parameter(torch.ones(2)), first]},
    "named": lambda first: {"params": [("a", nn.Parameter(torch.ones(2)))]},
    "some named": lambda first: {"params": [("a", nn.Parameter(torch.ones(2))), nn.Parameter(torch.ones(2))]},
}
# Options of which an optimizer knows nothing are none of its business, here as in torch.
UNKNOWN = {"novograd": {"misspelt option", "larc option"}, "larc-sgd": {"lr"}, "larc-adamw": {"lr"}}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(kind, reason) for kind in OPTIMIZERS for reason in REFUSED if reason not in UNKNOWN.get(kind, ())],
)
def test_a_refused_group_leaves_the_optimizer_as_it_was(kind, reason):
    first = nn.Parameter(torch.ones(3))
    optimizer = OPTIMIZERS[kind]([first])
    groups, shown, defaults = optimizer.param_groups, repr(optimizer), dict(optimizer.defaults)
    with pytest.raises((ValueError, TypeError, RuntimeError, KeyError)):
        optimizer.add_param_group(REFUSED[reason](first))
    assert optimizer.param_groups is groups
    assert [group["params"] for group in groups] == [[first]]
    assert repr(optimizer) == shown
    assert optimizer.defaults == defaults
    optimizer.add_param_group({"params": nn.Parameter(torch.ones(2))})
    assert len(groups) == 2


def test_a_refused_group_does_not_vouch_for_partitions():
    optimizer = NovoGrad([nn.Parameter(torch.ones(3))])
    with pytest.raises(ValueError, match="FSDP1"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(16)), flattened("_fsdp_flattened")]})
    partition = nn.Parameter(torch.ones(16))
    partition.grad = torch.ones(16)
    optimizer.param_groups[0]["params"] = [partition]
    with pytest.raises(ValueError, match="flattened partition"):
        optimizer.step()


def test_a_group_that_the_wrapped_optimizer_refuses_too_late_is_taken_out_again():
    class Hasty(torch.optim.SGD):
        def add_param_group(self, param_group):
            super().add_param_group(param_group)
            if len(self.param_groups) > 1:
                raise ValueError("one group only")

    larc = LARC(Hasty([nn.Parameter(torch.ones(3))]))
    with pytest.raises(ValueError, match="one group only"):
        larc.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert len(larc.param_groups) == 1
