"""LARC leaves all else as it found it: gradients, excluded groups, layers without a gradient, other layers' NaN."""

import importlib

import pytest
import torch
from optim.larc.larc_cases import INNER, SGD, assert_same, every_inner, make_params, run, set_grads

from lightning_novograd.optim.larc import LARC

pytestmark = pytest.mark.usefixtures("kernels")  # each test with and without the C++ kernels


@pytest.mark.parametrize("trust_coefficient", [1e-3, 1e3], ids=["clipped", "within"])
@pytest.mark.parametrize(
    ("inner", "target"),
    # torch's foreach SGD writes into p.grad; with target gradient that is undone
    [("sgd", "gradient"), ("sgd_fused", "gradient"), ("sgd_foreach", "gradient"), ("sgd", "update")],
)
def test_gradients_are_the_same_objects_with_the_same_bits_afterwards(inner, target, trust_coefficient):
    params = make_params()
    larc = LARC(INNER[inner](params), trust_coefficient=trust_coefficient, target=target)
    set_grads(params, 0)
    grads = [p.grad for p in params]
    copies = [g.clone() for g in grads]
    larc.step()
    assert all(p.grad is g for p, g in zip(params, grads, strict=True))
    assert_same(grads, copies)


class Fails(SGD):
    def step(self, closure=None):
        raise ArithmeticError("inner step")


def fail(*args, **kwargs):
    raise ArithmeticError("inner step")


@pytest.mark.parametrize("target", ["gradient", "update"])
@pytest.mark.parametrize("cls", [SGD, Fails], ids=["piecewise", "whole"])
def test_an_exception_in_the_inner_step_leaves_everything_as_it_was(cls, target, monkeypatch):
    monkeypatch.setattr(importlib.import_module("torch.optim.sgd"), "sgd", fail)
    params = make_params()
    # a worker that calls the step of SGD
    larc = LARC(cls(params, lr=0.1, momentum=0.9, weight_decay=0.25, fused=False), target=target)
    groups, group = larc.param_groups, dict(larc.param_groups[0])
    weights = [p.detach().clone() for p in params]
    set_grads(params, 0)
    grads = [p.grad for p in params]
    with pytest.raises(ArithmeticError, match="inner step") as caught:
        larc.step()
    assert caught  # holds the traceback, and with it every frame of the step
    assert larc.param_groups is groups
    assert larc.param_groups[0] == group
    assert all(p.grad is g for p, g in zip(params, grads, strict=True))
    assert_same(params, weights)


@pytest.mark.parametrize("target", ["gradient", "update"])
def test_excluded_groups_are_left_to_the_wrapped_optimizer(target):
    params, others = make_params(), make_params()
    larc = LARC(
        SGD([{"params": params[:1]}, {"params": params[1:], "larc": False}], lr=0.1, momentum=0.9, weight_decay=0.1),
        trust_coefficient=1e-4,
        target=target,
    )
    bare = SGD(others, lr=0.1, momentum=0.9, weight_decay=0.1)
    run(larc, params, 3)
    run(bare, others, 3)
    assert_same(params[1:], others[1:])
    assert not torch.equal(params[0], others[0])


def test_options_may_differ_between_groups():
    params = make_params()
    groups = [
        {"params": params[:1], "larc_trust_coefficient": 1e-3},
        {"params": params[1:2], "larc_clip": False},
        {"params": params[2:], "larc_min_update": 0.5, "larc_eps": 1.0},
    ]
    larc = LARC(SGD(groups, lr=0.1), trust_coefficient=2e-3)
    set_grads(params, 0)
    weights, grads = ([t.norm() for t in ts] for ts in (params, [p.grad for p in params]))
    larc.step()
    ratios = [1e-3 * weights[0] / grads[0] / 0.1, 2e-3 * weights[1] / grads[1], torch.tensor(0.5)]
    torch.testing.assert_close(torch.cat([f for _, f in larc.factors]), torch.stack(ratios).detach())


@pytest.mark.parametrize("target", ["gradient", "update"])
def test_layers_without_a_gradient_stay_and_make_no_state(target):
    params = make_params()
    weights = [p.detach().clone() for p in params]
    larc = LARC(SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1), target=target)
    larc.step()
    set_grads(params, 0)
    params[1].grad = None
    larc.step()
    assert_same(params[1:2], weights[1:2])
    assert params[1] not in larc.state
    assert not torch.equal(params[0], weights[0])


@every_inner
def test_a_nan_gradient_harms_its_own_layer_only(inner):
    params, others = make_params(), make_params()
    larc, other = (LARC(INNER[inner](p), trust_coefficient=0.01) for p in (params, others))
    for step in range(3):
        set_grads(params, step)
        set_grads(others, step)
        params[1].grad.view(-1)[step] = torch.nan
        larc.step()
        other.step()
    assert params[1].isnan().any()
    assert_same([params[0], params[2]], [others[0], others[2]])


@pytest.mark.parametrize("target", ["gradient", "update"])
@pytest.mark.parametrize("clip", [True, False], ids=["clip", "scale"])
@pytest.mark.parametrize("lr", [0.0, torch.tensor(0.0)], ids=["float", "tensor"])
def test_a_learning_rate_of_zero_moves_nothing(lr, clip, target):
    params = make_params()
    params[1].detach().zero_()
    weights = [p.detach().clone() for p in params]
    larc = LARC(SGD(params, lr=lr, momentum=0.9, weight_decay=0.1, foreach=False), clip=clip, target=target)
    run(larc, params, 2)
    assert_same(params, weights)


@pytest.mark.parametrize("target", ["gradient", "update"])
def test_a_tensor_learning_rate_is_a_number(target):
    params, others = make_params(), make_params()
    run(LARC(SGD(params, lr=torch.tensor(0.1)), target=target, trust_coefficient=1e-3), params, 2)
    run(LARC(SGD(others, lr=0.1), target=target, trust_coefficient=1e-3), others, 2)
    torch.testing.assert_close(params, others)


@pytest.mark.parametrize(
    ("option", "value"), [("larc_trust_coefficient", -1.0), ("larc_bogus", 1), ("larc_clip", "no")]
)
def test_options_of_a_state_dict_are_checked(option, value):
    larc = LARC(SGD(make_params(), lr=0.1))
    state_dict = larc.state_dict()
    state_dict["param_groups"][0][option] = value
    with pytest.raises((ValueError, TypeError), match=option):
        larc.load_state_dict(state_dict)
