"""A Composite's state dict is in torch's format, continues the training, and is refused by another composition."""

import copy
import io

import pytest
import torch
from optim.composite.composites import PARTS, SGD, AdamW, params_of
from optim.larc.larc_cases import assert_same, assert_same_state, make_params, run
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from lightning_novograd.optim import LARC, Composite, NovoGrad
from lightning_novograd.optim.checkpoint import convert_state_dict

every_composite = pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)


def through_a_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# --- what is saved continues -----------------------------------------------------------------------------------------


@every_composite
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_reloaded_state_continues_bit_for_bit(parts, dtype):
    params = make_params(dtype=dtype)
    composite = Composite(parts(params))
    run(composite, params, 2)
    for group in composite.param_groups:
        group["lr"] *= 0.5
    others = copy.deepcopy(params)
    other = Composite(parts(others))
    other.load_state_dict(through_a_file(composite.state_dict()))
    assert [group["lr"] for group in other.param_groups] == [group["lr"] for group in composite.param_groups]
    run(composite, params, 2, first=2)
    run(other, others, 2, first=2)
    assert_same(params, others)
    for one, reloaded in zip(params_of(composite), params_of(other), strict=True):
        for key, value in composite.state[one].items():
            if isinstance(value, torch.Tensor):
                assert other.state[reloaded][key].dtype == value.dtype
    assert_same_state(composite, other)


def test_the_format_is_torchs_with_indices_over_all_groups():
    params = make_params()
    composite = Composite([SGD(params[:1], lr=0.1, momentum=0.9), AdamW(params[1:])])
    new = torch.nn.Parameter(torch.ones(2))
    composite.add_param_group({"params": [new]})
    run(composite, [*params, new], 1)
    saved = composite.state_dict()
    plain = torch.optim.Adam([{"params": params[:1]}, {"params": params[1:]}, {"params": [new]}])
    assert list(saved) == ["state", "param_groups"]
    assert [group["params"] for group in saved["param_groups"]] == [
        group["params"] for group in plain.state_dict()["param_groups"]
    ]
    assert [group["optimizer"] for group in saved["param_groups"]] == ["SGD", "AdamW", "SGD"]
    del composite.param_groups[1]["optimizer"]
    assert composite.state_dict()["param_groups"][1]["optimizer"] == "AdamW"
    assert saved["state"][1]["exp_avg"] is composite.state[params[1]]["exp_avg"]
    assert saved["state"][3]["momentum_buffer"] is composite.state[new]["momentum_buffer"]
    before = copy.deepcopy(composite.state[new])
    composite.load_state_dict(through_a_file(saved))
    assert composite.param_groups[2]["params"][0] is new
    assert torch.equal(composite.state[new]["momentum_buffer"], before["momentum_buffer"])


def test_parts_convert_what_they_load():
    """NovoGrad takes a state in NeMo's format and keeps second moments in float32, LARC one of the bare optimizer."""
    params = make_params(dtype=torch.bfloat16)
    composite = Composite([NovoGrad(params[:1]), SGD(params[1:], lr=0.3, momentum=0.9)])
    run(composite, params, 2)
    saved = composite.state_dict()
    nemo = convert_state_dict(composite.optimizers[0].state_dict(), "ours", "nemo")
    nemo["param_groups"][0]["optimizer"] = "NovoGrad"
    groups = [nemo["param_groups"][0], saved["param_groups"][1]]
    mixed = {"state": {**saved["state"], **nemo["state"]}, "param_groups": groups}

    others = make_params(dtype=torch.bfloat16)
    larc = LARC(SGD(others[1:], lr=0.1), trust_coefficient=0.5)
    other = Composite([NovoGrad(others[:1]), larc])
    other.load_state_dict(through_a_file(mixed))
    assert other.state[others[0]]["exp_avg_sq"].dtype == torch.float32
    assert other.state[others[0]]["exp_avg_sq"] == composite.state[params[0]]["exp_avg_sq"]
    assert larc.param_groups[0]["lr"] == 0.3
    assert larc.param_groups[0]["larc_trust_coefficient"] == 0.5
    assert [group["optimizer"] for group in other.param_groups] == ["NovoGrad", "LARC(SGD)"]


def test_a_bare_state_loaded_into_a_part_leaves_the_part_named():
    params = make_params()
    composite = Composite([SGD(params[:1], lr=0.1), AdamW(params[1:])])
    bare = AdamW(params[1:], lr=0.5)
    composite.optimizers[1].load_state_dict(bare.state_dict())
    assert [(group["optimizer"], group["lr"]) for group in composite.param_groups] == [("SGD", 0.1), ("AdamW", 0.5)]


def test_what_else_parts_save_is_given_back_to_them():
    params = make_params()

    def build():
        counting = SGD(params[1:], lr=0.1)
        counting.state["count"] = 0
        counting.register_state_dict_post_hook(lambda o, saved: {**saved, "note": "mine"})
        return Composite([AdamW(params[:1]), counting])

    composite, other, notes = build(), build(), []
    composite.optimizers[1].state["count"] = 7
    saved = through_a_file(composite.state_dict())
    assert saved["optimizers"] == [{}, {"note": "mine"}]
    assert saved["state"][1, "count"] == 7
    other.optimizers[1].register_load_state_dict_pre_hook(lambda o, state: notes.append(state.get("note")))
    other.load_state_dict(saved)
    assert other.optimizers[1].state["count"] == 7
    assert notes == ["mine"]


def test_a_parameter_that_comes_twice_in_a_group_has_one_number():
    params = make_params()
    with pytest.warns(UserWarning, match="duplicate parameters"):
        composite, other = (Composite([AdamW([params[0], params[0]]), SGD(params[1:], momentum=0.9)]) for _ in range(2))
    run(composite, params, 1)
    saved = composite.state_dict()
    assert [group["params"] for group in saved["param_groups"]] == [[0, 0], [2, 3]]
    assert list(saved["state"]) == [0, 2, 3]
    other.load_state_dict(saved)
    assert_same_state(composite, other)


# --- hooks -----------------------------------------------------------------------------------------------------------


def test_hooks_run_around_those_of_the_parts_and_may_replace_the_state_dict():
    params = make_params()
    composite = Composite([SGD(params[:1], lr=0.1), AdamW(params[1:])])
    log = []
    for name, optimizer in (("all", composite), ("part", composite.optimizers[0])):
        optimizer.register_state_dict_pre_hook(lambda o, name=name: log.append(f"{name} save pre"))
        optimizer.register_state_dict_post_hook(lambda o, s, name=name: log.append(f"{name} save post"))
        optimizer.register_load_state_dict_pre_hook(lambda o, s, name=name: log.append(f"{name} load pre"))
        optimizer.register_load_state_dict_post_hook(lambda o, name=name: log.append(f"{name} load post"))
    composite.register_state_dict_post_hook(lambda o, saved: {**saved, "note": 1})
    composite.register_load_state_dict_pre_hook(
        lambda o, s: {**s, "param_groups": [{**g, "lr": 9} for g in s["param_groups"]]}
    )
    saved = composite.state_dict()
    assert saved["note"] == 1
    composite.load_state_dict(saved)
    assert [group["lr"] for group in composite.param_groups] == [9, 9]
    assert saved["param_groups"][0]["lr"] == 0.1
    assert log == [f"{who} {what} {when}" for what in ("save", "load") for who, when in (
        ("all", "pre"), ("part", "pre"), ("part", "post"), ("all", "post"))]  # fmt: skip


# --- what is refused -------------------------------------------------------------------------------------------------

SAVED = "SGD, AdamW"
OTHERS = {
    "order": (
        lambda ps: [AdamW(ps[:1]), SGD(ps[1:])],
        r"this is Composite\(AdamW, SGD\), with param groups of AdamW, SGD",
    ),
    "class": (lambda ps: [SGD(ps[:1]), NovoGrad(ps[1:])], r"this is Composite\(SGD, NovoGrad\)"),
    "fewer": (lambda ps: [SGD(ps)], r"this is Composite\(SGD\), with param groups of SGD;"),
    "more": (lambda ps: [SGD(ps[:1]), AdamW(ps[1:2]), SGD(ps[2:])], r"this is Composite\(SGD#0, AdamW, SGD#2\)"),
    "groups": (
        lambda ps: [SGD([{"params": ps[:1]}, {"params": ps[1:2]}]), AdamW(ps[2:])],
        r"this is Composite\(SGD, AdamW\), with param groups of SGD, SGD, AdamW",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_states_of_other_compositions_are_refused(case):
    build, message = OTHERS[case]
    params = make_params()
    saved = Composite([SGD(params[:1]), AdamW(params[1:])]).state_dict()
    composite = Composite(build(make_params()))
    before = copy.deepcopy(composite.state_dict())
    saved_message = rf"that of Composite\({SAVED}\), whose param groups are those of {SAVED}; "
    with pytest.raises(ValueError, match=saved_message + message):
        composite.load_state_dict(saved)
    assert composite.state_dict() == before


def test_the_same_classes_divided_otherwise_are_refused():
    params = make_params()
    groups = [{"params": [p]} for p in params]
    saved = Composite([SGD(groups[:2]), SGD(groups[2:])]).state_dict()
    other = Composite([SGD([{"params": params[:1]}]), SGD([{"params": [p]} for p in params[1:]])])
    with pytest.raises(ValueError, match=r"those of SGD#0, SGD#0, SGD#1; .* with param groups of SGD#0, SGD#1, SGD#1"):
        other.load_state_dict(saved)


@pytest.mark.parametrize(("saved", "own"), [((True, False), (False, True)), ((True, False), (False, False))])
def test_larc_elsewhere_is_refused(saved, own):
    params = make_params()

    def build(larc):
        parts = zip([SGD(params[:1]), AdamW(params[1:])], larc, strict=True)
        return Composite([LARC(part) if wrapped else part for part, wrapped in parts])

    with pytest.raises(ValueError, match=r"that of Composite\(LARC\(SGD\), AdamW\)"):
        build(own).load_state_dict(build(saved).state_dict())


def test_states_of_single_optimizers_of_other_sizes_and_of_strangers_are_refused():
    params = make_params()
    composite = Composite([SGD(params[:1]), AdamW(params[1:])])
    bare = SGD([{"params": params[:1]}, {"params": params[1:]}])
    for group in bare.param_groups:
        group.pop("optimizer", None)
    with pytest.raises(ValueError, match=r"single optimizer with 2 param groups, not of Composite\(SGD, AdamW\)"):
        composite.load_state_dict(bare.state_dict())
    smaller = Composite([SGD(params[:1]), AdamW(params[1:2])])
    with pytest.raises(ValueError, match=r"has 2 parameters in param group 1 \(AdamW\), where this optimizer has 1"):
        smaller.load_state_dict(composite.state_dict())
    saved = composite.state_dict()
    with pytest.raises(ValueError, match="state for 12, which is none of its parameters"):
        composite.load_state_dict({**saved, "state": {12: {}}})


def test_a_part_that_refuses_its_share_leaves_all_as_it_was():
    params, others = make_params(), make_params()
    composite = Composite([SGD(params[:1], lr=0.1, momentum=0.9), NovoGrad(params[1:])])
    run(composite, params, 2)
    saved = copy.deepcopy(composite.state_dict())
    saved["param_groups"][0]["lr"] = 7.0
    del saved["state"][1]["exp_avg"]
    other = Composite([SGD(others[:1], lr=0.1, momentum=0.9), NovoGrad(others[1:])])
    run(other, others, 1)
    groups, before = list(other.param_groups), copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match="not a NovoGrad state"):
        other.load_state_dict(saved)
    assert all(one is group for one, group in zip(other.param_groups, groups, strict=True))
    after = other.state_dict()
    assert after["param_groups"] == before["param_groups"]
    torch.testing.assert_close(after["state"], before["state"], rtol=0, atol=0)


# --- torch.distributed.checkpoint ------------------------------------------------------------------------------------


@pytest.mark.parametrize("flatten", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize("steps", [0, 2])
def test_distributed_checkpoints_take_it(flatten, steps):
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)

    def build():
        model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        parts = [
            NovoGrad(model[0].parameters()),
            AdamW(model[1].parameters()),
            SGD(model[2].parameters(), momentum=0.9),
        ]
        return model, Composite(parts)

    model, composite = build()
    run(composite, list(model.parameters()), steps)
    composite.zero_grad()
    resumed_model, resumed = build()
    resumed_model.load_state_dict(model.state_dict())
    saved = get_optimizer_state_dict(model, composite, options=options)
    before = [p.detach().clone() for p in resumed_model.parameters()]
    set_optimizer_state_dict(resumed_model, resumed, saved, options=options)
    assert_same(resumed_model.parameters(), before)
    assert_same_state(composite, resumed)
    with pytest.raises((ValueError, RuntimeError, KeyError)):
        set_optimizer_state_dict(resumed_model, AdamW(resumed_model.parameters()), saved, options=options)
