"""A Composite's param groups, state and defaults are its parts', read and written."""

import copy

import pytest
import torch
from optim.composite.composites import PARTS, SGD, AdamW, params_of
from optim.larc.larc_cases import make_params, run

from lightning_novograd.optim import LARC, Composite, NovoGrad

every_composite = pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)


def two_parts(**options):
    params = make_params()
    return params, Composite([SGD(params[:1], lr=0.1, momentum=0.9), AdamW(params[1:], lr=0.2, **options)])


def agree(composite):
    """The list of groups has all groups of all parts, once, and the parts' own."""
    listed = list(composite.param_groups)
    groups = [group for part in composite.optimizers for group in part.param_groups]
    return sorted(map(id, listed)) == sorted(map(id, groups))


# --- param groups ----------------------------------------------------------------------------------------------------


@every_composite
def test_the_groups_are_the_parts_own_dicts_in_the_parts_order(parts):
    composite = Composite(parts(make_params()))
    groups = [group for part in composite.optimizers for group in part.param_groups]
    assert type(composite.param_groups) is list
    assert composite.param_groups is composite.param_groups
    assert all(one is other for one, other in zip(composite.param_groups, groups, strict=True))


def test_groups_name_their_parts():
    ps = [torch.nn.Parameter(torch.ones(2)) for _ in range(5)]
    inner = SGD(ps[1:2], lr=0.1)
    parts = [SGD(ps[:1], lr=0.1), LARC(inner), AdamW(ps[2:3]), SGD(ps[3:4], lr=0.1), NovoGrad(ps[4:])]
    composite = Composite(parts)
    names = [group["optimizer"] for group in composite.param_groups]
    assert names == ["SGD#0", "LARC(SGD)", "AdamW", "SGD#3", "NovoGrad"]
    assert repr(composite).startswith("Composite(SGD, LARC(SGD), AdamW, SGD, NovoGrad) (\nParameter Group 0\n")
    assert "\n    optimizer: LARC(SGD)\n" in repr(composite)


@pytest.mark.parametrize(
    ("key", "part"),
    [({}, 0), ({"optimizer": 1}, 1), ({"optimizer": "AdamW"}, 1), ({"optimizer": "SGD"}, 0)],
    ids=str,
)
def test_an_added_group_comes_last_and_goes_to_the_part_that_it_names(key, part):
    params, composite = two_parts()
    new = torch.nn.Parameter(torch.ones(2))
    composite.add_param_group({"params": new, **key})
    group = composite.param_groups[-1]
    assert composite.optimizers[part].param_groups[-1] is group
    assert group["optimizer"] == ("SGD", "AdamW")[part]
    assert group["lr"] == (0.1, 0.2)[part]
    assert agree(composite)
    run(composite, [*params, new], 1)
    assert not torch.equal(new, torch.ones(2))
    assert new in composite.optimizers[part].state


@pytest.mark.parametrize("name", ["LARC", "LARC(SGD)"])
def test_a_part_is_named_by_any_class_that_no_other_part_has(name):
    ps = make_params()
    composite = Composite([SGD(ps[:1], lr=0.1), LARC(SGD(ps[1:2], lr=0.1))])
    composite.add_param_group({"params": ps[2:], "optimizer": name})
    assert [group["optimizer"] for group in composite.param_groups] == ["SGD", "LARC(SGD)", "LARC(SGD)"]
    assert composite.param_groups[-1]["larc"]


@pytest.mark.parametrize(
    ("group", "error", "message"),
    [
        (
            {"optimizer": "AdamV"},
            ValueError,
            r"unknown optimizer 'AdamV'; did you mean 'AdamW'\? Allowed: AdamW, SGD#0",
        ),
        ({"optimizer": "SGD"}, ValueError, "the optimizer 'SGD', which may be SGD#0 or SGD#1"),
        ({"optimizer": 3}, ValueError, r"names optimizer 3. Allowed: 0 \(SGD#0\), 1 \(SGD#1\), 2 \(AdamW\)"),
        ({"optimizer": -1}, ValueError, "names optimizer -1"),
        ({"optimizer": True}, ValueError, "unknown optimizer True"),
        ({"optimizer": {"name": "adamw"}}, ValueError, "unknown optimizer {'name': 'adamw'}"),
        ({"optimizer": 2, "params": None}, TypeError, "not iterable"),
    ],
    ids=str,
)
def test_groups_that_name_no_part_or_that_a_part_refuses_change_nothing(group, error, message):
    ps = make_params()
    composite = Composite([SGD(ps[:1], lr=0.1), SGD(ps[1:2], lr=0.1), AdamW(ps[2:])])
    before = list(composite.param_groups)
    with pytest.raises(error, match=message):
        composite.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], **group})
    with pytest.raises(TypeError, match="must be a dict"):
        composite.add_param_group([torch.nn.Parameter(torch.ones(2))])
    assert [id(group) for group in composite.param_groups] == list(map(id, before))
    assert agree(composite)


def test_a_part_that_refuses_a_group_only_after_adding_it_does_not_keep_it():
    """As torch's Adagrad: it sets up the state after the base class has taken the group."""
    params = make_params()

    class Late(SGD):
        def add_param_group(self, group):
            super().add_param_group(group)
            if group["lr"] < 0:
                raise ValueError("too late")

    composite = Composite([AdamW(params[:1]), Late(params[1:2], lr=0.1)])
    with pytest.raises(ValueError, match="too late"):
        composite.add_param_group({"params": params[2:], "lr": -1.0, "optimizer": "Late"})
    assert len(composite.param_groups) == 2
    assert agree(composite)


def new_group(**options):
    return {"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.5, "momentum": 0.0, **options}


def appended(groups):
    plain = {key: value for key, value in groups[0].items() if key not in ("params", "optimizer")}
    groups.append({**plain, **new_group()})


CHANGES = {
    "append": appended,
    "extend": lambda groups: groups.extend([{**groups[1], **new_group(optimizer="AdamW")}]),
    "insert": lambda groups: groups.insert(1, {**groups[1], **new_group()}),
    "replace": lambda groups: groups.__setitem__(0, {**groups[0]}),
    "delete": lambda groups: groups.__delitem__(1),
    "pop": lambda groups: groups.pop(0),
    "reverse": lambda groups: groups.reverse(),
    "clear": lambda groups: groups.clear(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_in_the_list_is_changed_in_the_parts(change):
    params, composite = two_parts()
    CHANGES[change](composite.param_groups)
    wanted = list(composite.param_groups)
    params = params_of(composite)
    before = [p.detach().clone() for p in params]
    run(composite, params, 1)
    assert agree(composite)
    assert [id(group) for group in composite.param_groups] == list(map(id, wanted))
    assert not any(map(torch.equal, params, before))


def test_a_group_put_into_the_list_takes_part_in_the_next_step():
    _, composite = two_parts()
    groups = composite.param_groups
    appended(groups)
    new = groups[-1]["params"][0]
    new.grad = torch.ones(2)
    composite.step()
    assert new.tolist() == [0.5, 0.5]


def test_setting_the_groups_gives_each_part_its_own():
    """As Lightning's finetuning callbacks do at resume, with new dicts."""
    params, composite = two_parts()
    composite.param_groups = [dict(group) for group in reversed(composite.param_groups)]
    assert [group["optimizer"] for group in composite.param_groups] == ["AdamW", "SGD"]
    assert composite.optimizers[0].param_groups[0]["params"][0] is params[0]
    assert agree(composite)
    composite.param_groups += [{**composite.param_groups[0], **new_group()}]
    assert [group["optimizer"] for group in composite.param_groups] == ["AdamW", "SGD", "AdamW"]
    assert agree(composite)


def test_groups_that_cannot_be_set_leave_all_as_it_was():
    params, composite = two_parts()
    groups = list(composite.param_groups)
    with pytest.raises(ValueError, match="unknown optimizer 'Adam'"):
        composite.param_groups = [{**groups[0], "optimizer": "Adam"}]
    with pytest.raises(ValueError, match="belongs to one optimizer"):
        composite.param_groups = [groups[0], {**groups[1], "params": params}]
    composite.param_groups.append({**groups[1], "optimizer": 0})
    with pytest.raises(ValueError, match="belongs to one optimizer"):
        composite.step()
    assert [id(group) for group in composite.param_groups] == list(map(id, groups))


def test_what_is_changed_in_a_part_shows_in_the_list():
    params, composite = two_parts()
    groups = composite.param_groups
    new = torch.nn.Parameter(torch.ones(2))
    composite.optimizers[0].add_param_group({"params": [new]})
    assert composite.param_groups[-1]["params"][0] is new
    assert groups is composite.param_groups
    del composite.optimizers[1].param_groups[0]
    assert [group["optimizer"] for group in composite.param_groups] == ["SGD", "SGD"]
    composite.optimizers[0].add_param_group({"params": params[1:]})
    composite.param_groups.pop()
    assert agree(composite)


def test_changes_on_both_sides_at_once_are_refused():
    _, composite = two_parts()
    groups = composite.param_groups
    composite.optimizers[0].add_param_group(new_group())
    groups.pop()
    with pytest.raises(RuntimeError, match="SGD and AdamW were changed both in the Composite's list and in theirs"):
        composite.step()


# --- state -----------------------------------------------------------------------------------------------------------


def test_the_state_reads_and_writes_the_parts():
    params, composite = two_parts()
    sgd, adamw = composite.optimizers
    state = composite.state
    assert not state
    assert composite.state is state
    run(composite, params, 1)
    assert list(state) == params
    assert len(state) == 3
    assert state[params[0]] is sgd.state[params[0]]
    assert state[params[2]] is adamw.state[params[2]]
    state[params[0]]["momentum_buffer"] = torch.zeros(4, 3)
    assert sgd.state[params[0]]["momentum_buffer"].sum() == 0
    state[params[1]] = {"step": torch.tensor(7.0)}
    assert adamw.state[params[1]]["step"] == 7
    del state[params[1]]
    assert params[1] not in adamw.state
    assert params[1] not in state
    assert params[2] in state
    assert state[params[1]] == {}, "as in the defaultdict of an optimizer"
    assert params[1] in adamw.state
    assert str(state[params[2]]) in repr(state)


def test_the_state_is_set_part_by_part():
    params, composite = two_parts()
    run(composite, params, 1)
    composite.state = {p: {"mine": torch.tensor(float(i))} for i, p in enumerate(params)}
    assert composite.optimizers[0].state == {params[0]: {"mine": torch.tensor(0.0)}}
    assert list(composite.optimizers[1].state) == params[1:]
    assert composite.optimizers[1].state[torch.nn.Parameter(torch.ones(1))] == {}
    with pytest.raises(KeyError, match="no parameter of SGD or AdamW"):
        composite.state = {torch.ones(1): {}}
    assert len(composite.state) > 2


def test_the_state_is_emptied_and_copied_as_a_dict():
    params, composite = two_parts()
    run(composite, params, 1)
    state = composite.state
    copied = state.copy()
    assert copied == dict(state)
    assert state.copy()["none yet"] == {}, "as in the defaultdict of an optimizer"
    popped = [state.popitem()[0] for _ in params]
    assert sorted(map(id, popped)) == sorted(map(id, params))
    with pytest.raises(KeyError):
        state.popitem()
    state.update(copied)
    assert [len(part.state) for part in composite.optimizers] == [1, 2]
    state.clear()
    assert [len(part.state) for part in composite.optimizers] == [0, 0]


class Counted(list):
    """Parameters of a group that count how often somebody goes through them."""

    walks = 0

    def __iter__(self):
        Counted.walks += 1
        return super().__iter__()


def test_a_parameters_part_is_found_without_going_through_all():
    params = [torch.nn.Parameter(torch.ones(1)) for _ in range(40)]
    composite = Composite([SGD(params[:20], lr=0.1), AdamW(params[20:])])
    for group in composite.param_groups:
        group["params"] = Counted(group["params"])
    Counted.walks = 0
    for index, param in enumerate(params):
        composite.state[param] = {"step": index}
    assert Counted.walks <= 4
    moved = composite.param_groups[0]["params"].pop()
    composite.param_groups[1]["params"].append(moved)
    composite.optimizers[0].state.clear()
    composite.state[moved]["step"] = 3
    assert composite.optimizers[1].state[moved] == {"step": 3}


def test_asking_for_a_state_makes_none():
    params, composite = two_parts()
    state = composite.state
    assert state.get(params[0]) is None
    assert state.get(params[1], {}) == {}
    assert state.pop(params[0], 3) == 3
    with pytest.raises(KeyError):
        state.pop(params[0])
    assert not state
    assert state.setdefault(params[1], {"step": 1}) == {"step": 1}
    assert state.setdefault(params[1], {"step": 2}) == state.get(params[1]) == {"step": 1}
    assert composite.optimizers[1].state[params[1]] == {"step": 1}
    assert state.pop(params[1]) == {"step": 1}
    assert not composite.optimizers[1].state


def test_state_of_strangers_is_refused_and_that_under_other_keys_is_found():
    _, composite = two_parts()
    for stranger in (torch.nn.Parameter(torch.ones(2)), "count"):
        with pytest.raises(KeyError, match="no parameter of SGD or AdamW"):
            composite.state[stranger] = {}
        assert stranger not in composite.state
    composite.optimizers[1].state["count"] = 3
    assert composite.state["count"] == 3
    composite.state["count"] = 4
    assert composite.optimizers[1].state["count"] == 4


def test_lightning_moves_the_state_to_another_device():
    from lightning.fabric.utilities.optimizer import _optimizer_to_device

    params, composite = two_parts()
    run(composite, params, 1)
    _optimizer_to_device(composite, torch.device("meta"))
    assert composite.optimizers[0].state[params[0]]["momentum_buffer"].device.type == "meta"
    assert composite.optimizers[1].state[params[1]]["exp_avg"].device.type == "meta"
    assert composite.optimizers[1].state[params[1]]["step"].device.type == "cpu"


# --- defaults --------------------------------------------------------------------------------------------------------


def test_defaults_are_what_all_parts_have():
    _, composite = two_parts()
    assert composite.defaults["lr"] == 0.1
    assert "differentiable" in composite.defaults
    assert not {"momentum", "betas"} & set(composite.defaults)


@pytest.mark.parametrize("scheduler", ["OneCycleLR", "CyclicLR"])
def test_momentum_is_cycled_only_where_all_parts_have_it(scheduler):
    arguments = {"OneCycleLR": {"max_lr": 1.0, "total_steps": 9}, "CyclicLR": {"base_lr": 0.1, "max_lr": 1.0}}
    build = getattr(torch.optim.lr_scheduler, scheduler)
    params, composite = two_parts()
    with pytest.raises(ValueError, match="must support momentum or beta1"):
        build(composite, **arguments[scheduler])
    build(composite, cycle_momentum=False, **arguments[scheduler])
    for parts, key in (
        ([NovoGrad(params[:1]), AdamW(params[1:])], "betas"),
        ([SGD(params[:1], momentum=0.9), LARC(SGD(params[1:], momentum=0.9))], "momentum"),
    ):
        composite = Composite(parts)
        sched = build(composite, **arguments[scheduler])
        before = copy.deepcopy([group[key] for group in composite.param_groups])
        run(composite, params, 1)
        sched.step()
        assert all(group[key] != b for group, b in zip(composite.param_groups, before, strict=True))
