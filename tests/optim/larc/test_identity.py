"""LARC and the optimizer that it wraps are one: param groups, state, copies and state dicts."""

import copy
import io
import pickle

import pytest
import torch
from optim.larc.larc_cases import (
    INNER,
    SGD,
    assert_same,
    assert_same_state,
    assert_shares,
    every_inner,
    make_params,
    run,
)
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from lightning_novograd.optim.larc import LARC

pytestmark = pytest.mark.usefixtures("kernels")  # each test with and without the C++ kernels


# --- one optimizer, seen twice ---------------------------------------------------------------------------------------


def test_it_is_an_optimizer_that_shares_everything_with_the_wrapped_one():
    params = make_params()
    inner = SGD(params[:2], lr=0.1, momentum=0.9)
    larc = LARC(inner)
    assert isinstance(larc, torch.optim.Optimizer)
    assert_shares(larc)
    run(larc, params[:2], 1)
    assert_shares(larc)
    larc.load_state_dict(larc.state_dict())
    assert_shares(larc)
    larc.add_param_group({"params": params[2:], "larc": False})
    assert_shares(larc)
    assert [group["larc"] for group in inner.param_groups] == [True, False]


def test_a_group_added_to_the_wrapped_optimizer_is_under_control_too():
    params = make_params()
    inner = SGD(params[:2], lr=0.1)
    larc = LARC(inner, trust_coefficient=1e-3)
    inner.add_param_group({"params": params[2:]})
    run(larc, params, 1)
    assert {id(p) for layers, _ in larc.factors for p in layers} == {id(p) for p in params}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
@every_inner
def test_copies_are_independent_and_continue_alike(inner, duplicate):
    params = make_params()
    larc = LARC(INNER[inner](params), trust_coefficient=0.01)
    run(larc, params, 2)
    other = duplicate(larc)
    assert_shares(other)
    assert (other.target, type(other.optimizer)) == (larc.target, type(larc.optimizer))
    other_params = [p for group in other.param_groups for p in group["params"]]
    assert not {id(p) for p in params} & {id(p) for p in other_params}
    before = [p.detach().clone() for p in params]
    run(other, other_params, 3, first=2)
    assert_same(params, before)
    run(larc, params, 3, first=2)
    assert_same(params, other_params)


# --- state_dict ------------------------------------------------------------------------------------------------------


@every_inner
def test_state_dict_round_trip_continues_bit_for_bit(inner):
    params = make_params()
    larc = LARC(INNER[inner](params), trust_coefficient=0.01)
    run(larc, params, 3)
    file = io.BytesIO()
    torch.save(larc.state_dict(), file)
    file.seek(0)
    resumed_params = [torch.nn.Parameter(p.detach().clone()) for p in params]
    resumed = LARC(INNER[inner](resumed_params))
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.param_groups[0]["larc_trust_coefficient"] == 0.01
    run(larc, params, 3, first=3)
    run(resumed, resumed_params, 3, first=3)
    assert_same(params, resumed_params)
    assert_same_state(larc, resumed)


@every_inner
def test_state_of_a_bare_optimizer_loads_and_leaves_the_options_alone(inner):
    params = make_params()
    groups = [{"params": params[:1]}, {"params": params[1:2]}, {"params": params[2:]}]
    bare = INNER[inner]([dict(group, lr=0.3) for group in groups])
    run(bare, params, 1)
    saved = bare.state_dict()
    larc = LARC(INNER[inner]([groups[0], {**groups[1], "larc": False}, {**groups[2], "larc_clip": False}]), 0.005)
    larc.load_state_dict(saved)
    run(larc, params, 1)
    keys = ("lr", "larc", "larc_clip", "larc_trust_coefficient")
    options = [tuple(group[key] for key in keys) for group in larc.param_groups]
    assert options == [(0.3, True, True, 0.005), (0.3, False, True, 0.005), (0.3, True, False, 0.005)]
    assert "larc" not in saved["param_groups"][0]


@every_inner
def test_state_of_a_bare_optimizer_loads_into_the_wrapped_one(inner):
    params = make_params()
    bare = INNER[inner](params)
    run(bare, params, 1)
    larc = LARC(INNER[inner](params), trust_coefficient=0.005)
    larc.optimizer.load_state_dict(bare.state_dict())
    run(larc, params, 1)
    assert larc.param_groups[0]["larc_trust_coefficient"] == 0.005


def test_a_state_with_other_groups_is_refused():
    params = make_params()
    larc = LARC(SGD(params, lr=0.1))
    with pytest.raises(ValueError, match="different number of parameter groups"):
        larc.load_state_dict(SGD([{"params": [p]} for p in params], lr=0.1).state_dict())


@pytest.mark.parametrize("flatten", [False, True], ids=["nested", "flat"])
def test_distributed_checkpoints_take_it(flatten):
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    model, resumed_model = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    larc, resumed = (LARC(SGD(m.parameters(), lr=0.1, momentum=0.9)) for m in (model, resumed_model))
    run(larc, list(model.parameters()), 2)
    larc.zero_grad()
    resumed_model.load_state_dict(model.state_dict())
    saved = get_optimizer_state_dict(model, larc, options=options)
    before = [p.detach().clone() for p in resumed_model.parameters()]
    set_optimizer_state_dict(resumed_model, resumed, saved, options=options)
    assert_same(resumed_model.parameters(), before)
    assert_shares(resumed)
    assert_same_state(larc, resumed)
