"""A state_dict continues the training bit for bit, keeps its precision, and is refused by other parameters."""

import copy
import io

import pytest
import torch
from optim.composite.composites import in_two_parts
from optim_db import DTYPES, WORKERS, layers, set_grads

from lightning_novograd.optim import NovoGrad

every_optimizer = pytest.mark.parametrize("build", [NovoGrad, in_two_parts(NovoGrad)], ids=["novograd", "composite"])
KINDS = ["matrix", "conv", "vector", "scalar", "channels-last", "empty", "long"]


def train(optimizer, params, steps):
    for step in steps:
        set_grads(params, step)
        optimizer.step()


def through_a_file(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@every_optimizer
@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_reloaded_state_continues_bit_for_bit(build, worker, dtype, after):
    options = {"lr": 0.1, "amsgrad": True, "weight_decay": 0.01, **WORKERS[worker]}
    params = layers(dtype, KINDS)
    optimizer = build(params.values(), **options)
    train(optimizer, params, range(after))
    params2 = copy.deepcopy(params)
    optimizer2 = build(params2.values(), lr=9.0, **WORKERS[worker])
    optimizer2.load_state_dict(through_a_file(optimizer.state_dict()))

    train(optimizer, params, range(after, after + 3))
    train(optimizer2, params2, range(after, after + 3))
    for kind, param in params.items():
        assert torch.equal(param, params2[kind]), kind
        for key, value in optimizer.state[param].items():
            assert optimizer2.state[params2[kind]][key].dtype == value.dtype
            assert torch.equal(optimizer2.state[params2[kind]][key], value), (kind, key)
    assert optimizer2.param_groups[0]["lr"] == 0.1


@every_optimizer
@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)], ids=str
)
def test_second_moments_keep_their_precision(build, dtype, expected):
    param = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))
    optimizer = build([param], amsgrad=True)
    param.grad = torch.full((4,), 1.23456789, dtype=torch.float64)
    optimizer.step()
    narrow = torch.nn.Parameter(torch.ones(4, dtype=dtype))
    loaded = build([narrow], amsgrad=True)
    loaded.load_state_dict(optimizer.state_dict())
    state = loaded.state[narrow]
    assert state["exp_avg"].dtype == dtype
    for key in ("exp_avg_sq", "max_exp_avg_sq"):
        assert state[key].dtype == expected
        assert state[key].item() == optimizer.state[param][key].to(expected).item()


def test_options_missing_in_the_saved_groups_keep_this_optimizers_values():
    """NeMo keeps luc out of its param groups, and its states count steps."""
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = NovoGrad([param], lr=0.5, luc=True, luc_trust=0.25)
    group = {
        "lr": 0.01,
        "betas": (0.8, 0.5),
        "eps": 1e-8,
        "weight_decay": 0.001,
        "grad_averaging": False,
        "amsgrad": False,
    }
    state = {"step": 7, "exp_avg": torch.full((3,), 2.0), "exp_avg_sq": torch.tensor(4.0)}
    optimizer.load_state_dict({"state": {0: state}, "param_groups": [{**group, "params": [0]}]})
    assert optimizer.param_groups[0]["luc"] is True
    assert optimizer.param_groups[0]["luc_trust"] == 0.25
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.5)
    param.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.state[param]["exp_avg_sq"].item() == 0.5 * 4 + 0.5 * 3


def saved_state():
    params = layers(torch.float32, ["matrix", "conv", "vector"])
    optimizer = NovoGrad([{"params": [params["matrix"]]}, {"params": [params["conv"], params["vector"]]}])
    train(optimizer, params, [2])
    return optimizer.state_dict()


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([["conv", "vector"], ["matrix"]], "doesn't match the size"),
        ([["matrix", "conv", "vector"]], "different number of parameter groups"),
        ([["matrix"], ["vector", "conv"]], r"parameter 0 of group 1: .*\(4, 2, 3\).*\(37,\).*same order"),
        ([["vector"], ["conv", "matrix"]], r"parameter 0 of group 0: .*\(4, 3\).*\(37,\).*same order"),
    ],
    ids=["groups swapped", "groups joined", "order within a group", "order across groups"],
)
def test_states_of_other_parameters_are_refused(groups, message):
    params = layers(torch.float32, ["matrix", "conv", "vector"])
    optimizer = NovoGrad([{"params": [params[kind] for kind in kinds]} for kinds in groups], lr=0.7)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved_state())
    assert not optimizer.state
    assert optimizer.param_groups[0]["lr"] == 0.7


def test_named_parameters_in_another_order_are_refused():
    left, right = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    saved = NovoGrad([("left", left), ("right", right)]).state_dict()
    other = NovoGrad([("right", right), ("left", left)])
    with pytest.raises(ValueError, match="another order: 'left' where the optimizer has 'right'"):
        other.load_state_dict(saved)
    renamed = NovoGrad([("module.left", left), ("module.right", right)])
    renamed.load_state_dict(saved)


@pytest.mark.parametrize("other", [torch.optim.AdamW, torch.optim.SGD], ids=lambda c: c.__name__)
def test_states_of_other_optimizers_are_refused(other):
    param = torch.nn.Parameter(torch.ones(3))
    options = {"momentum": 0.9} if other is torch.optim.SGD else {}
    optimizer = other([param], **options)
    param.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(ValueError, match="not a NovoGrad state"):
        NovoGrad([param]).load_state_dict(optimizer.state_dict())


def test_the_users_load_hooks_see_and_change_the_state():
    params = layers(torch.float32, ["vector"])
    optimizer = NovoGrad(params.values(), lr=0.1)
    train(optimizer, params, range(1))
    loaded = NovoGrad(layers(torch.float32, ["vector"]).values())
    seen = []

    def double(_, state_dict):
        state = {0: {**state_dict["state"][0], "exp_avg_sq": 2 * state_dict["state"][0]["exp_avg_sq"]}}
        return {**state_dict, "state": state}

    loaded.register_load_state_dict_pre_hook(double)
    loaded.register_load_state_dict_post_hook(lambda o: seen.append(o.state_dict()["state"][0]["exp_avg_sq"].item()))
    loaded.load_state_dict(optimizer.state_dict())
    assert seen == [2 * optimizer.state_dict()["state"][0]["exp_avg_sq"].item()]
    loaded.load_state_dict(optimizer.state_dict())
    assert len(seen) == 2, "no hook of a load is left behind"


def test_steps_after_loading_do_not_reach_back_into_the_state_dict():
    """One state may start several runs."""
    params = layers(torch.float32, ["matrix", "vector"])
    optimizer = NovoGrad(params.values(), amsgrad=True)
    train(optimizer, params, [2])
    saved = copy.deepcopy(optimizer.state_dict())
    before = copy.deepcopy(saved)
    loaded = NovoGrad(params.values(), amsgrad=True)
    loaded.load_state_dict(saved)
    train(loaded, params, [3, 4])
    for index, state in before["state"].items():
        for key in ("exp_avg_sq", "max_exp_avg_sq"):
            assert torch.equal(saved["state"][index][key], state[key]), (index, key)
        assert not torch.equal(loaded.state_dict()["state"][index]["exp_avg_sq"], state["exp_avg_sq"])
    assert saved["param_groups"] == before["param_groups"]


@pytest.mark.parametrize("key", ["exp_avg_sq", "max_exp_avg_sq"])
@pytest.mark.parametrize("value", [torch.ones(3), torch.ones(0)], ids=["three", "none"])
def test_scalars_of_another_size_are_refused_before_anything_changes(key, value):
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = NovoGrad([param], amsgrad=True)
    train(optimizer, {"vector": param}, [0])
    saved, before = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(optimizer.state_dict())
    saved["state"][0][key] = value
    saved["state"][0]["exp_avg"] += 1
    saved["param_groups"][0]["lr"] = 9.0
    with pytest.raises(ValueError, match="parameter 0 of group 0: not a NovoGrad state"):
        optimizer.load_state_dict(saved)
    torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("betas", (2, -1), r"Invalid beta parameter at index 0: 2; allowed"),
        ("lr", float("inf"), "Invalid learning rate: inf; allowed"),
        ("eps", -1.0, "Invalid eps value: -1.0; allowed"),
    ],
)
def test_saved_options_out_of_range_are_refused_before_anything_changes(option, value, message):
    """As the constructor and `add_param_group` refuse them."""
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = NovoGrad([{"params": [param]}, {"params": [torch.nn.Parameter(torch.ones(2))]}])
    train(optimizer, {"vector": param}, [0])
    saved, before = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][1][option] = value
    saved["state"][0]["exp_avg"] += 1
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)
